//! The one thread that carries all SSH traffic of the process.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::runtime::{Builder, Handle};
use tokio::task::JoinHandle;

use crate::error::{Error, Result};

static HANDLE: Mutex<Option<Handle>> = Mutex::new(None);

/// The thread's runtime; the first call starts it. It lives as long as the process and sleeps while
/// there is nothing to do.
pub(crate) fn handle() -> Result<Handle> {
    let mut slot = HANDLE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(handle) = &*slot {
        return Ok(handle.clone());
    }
    let thread_error = |source| Error::Thread { source: Arc::new(source) };
    let runtime = Builder::new_current_thread().enable_all().build().map_err(thread_error)?;
    let handle = runtime.handle().clone();
    std::thread::Builder::new()
        .name("fleetbox-ssh".into())
        .spawn(move || runtime.block_on(std::future::pending::<()>()))
        .map_err(thread_error)?;
    *slot = Some(handle.clone());
    Ok(handle)
}

/// Runs `future` on the thread and waits for it here. Dropping the returned future aborts it.
pub(crate) async fn run<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> Result<T> {
    let task = AbortOnDrop(handle()?.spawn(future));
    struct AbortOnDrop<T>(JoinHandle<T>);
    impl<T> Drop for AbortOnDrop<T> {
        fn drop(&mut self) {
            self.0.abort();
        }
    }
    let mut task = task;
    (&mut task.0).await.map_err(|join| Error::Thread { source: Arc::new(std::io::Error::other(join)) })
}
