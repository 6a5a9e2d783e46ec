//! Work on a thread of its own that a future waits for, and that ends when the future is dropped.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::mpsc;

use crate::{ImageError, ImageProgress};

/// What the work sees of whoever waits for it.
#[derive(Debug, Clone)]
pub(crate) struct Task {
    cancel: Arc<Cancel>,
    progress: Option<mpsc::UnboundedSender<ImageProgress>>,
}

#[derive(Debug)]
struct Cancel {
    asked: AtomicBool,
    /// Hangs up when the waiting future is dropped, so that a poll on something else can include it.
    wake: OwnedFd,
}

impl Task {
    /// To be called between pieces of work.
    pub(crate) fn check(&self) -> Result<(), ImageError> {
        if self.cancel.asked.load(Ordering::Acquire) { Err(ImageError::Cancelled) } else { Ok(()) }
    }

    pub(crate) fn report(&self, progress: ImageProgress) {
        if let Some(tx) = &self.progress {
            // Nobody listens any more: `check` is about to say so.
            let _ = tx.send(progress);
        }
    }

    /// Waits for a descriptor to become readable (true) or for the time to pass (false).
    pub(crate) fn readable(&self, fd: BorrowedFd<'_>, wait: Duration) -> Result<bool, ImageError> {
        let mut fds =
            [PollFd::from_borrowed_fd(fd, PollFlags::IN), PollFd::new(&self.cancel.wake, PollFlags::IN)];
        poll_retrying(&mut fds, wait)?;
        self.check()?;
        Ok(!fds[0].revents().is_empty())
    }

    /// Waits, but not for longer than anybody is interested.
    pub(crate) fn pause(&self, wait: Duration) -> Result<(), ImageError> {
        poll_retrying(&mut [PollFd::new(&self.cancel.wake, PollFlags::IN)], wait)?;
        self.check()
    }
}

/// Waits for a descriptor to become readable, whoever is interested; false when the time has passed.
pub(crate) fn readable_within(fd: BorrowedFd<'_>, wait: Duration) -> bool {
    poll_retrying(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], wait).is_ok_and(|n| n > 0)
}

fn poll_retrying(fds: &mut [PollFd<'_>], wait: Duration) -> Result<usize, ImageError> {
    let timeout = Timespec::try_from(wait).unwrap_or(Timespec { tv_sec: i64::from(u32::MAX), tv_nsec: 0 });
    match poll(fds, Some(&timeout)) {
        // The callers look at the clock themselves.
        Err(rustix::io::Errno::INTR) => Ok(0),
        Ok(n) => Ok(n),
        Err(e) => Err(ImageError::io("wait for", "a descriptor")(e.into())),
    }
}

enum Message<T> {
    Progress(ImageProgress),
    Done(Result<T, ImageError>),
}

/// Dropping it makes the work stop and waits for that.
struct Running {
    cancel: Arc<Cancel>,
    hang_up: Option<OwnedFd>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.cancel.asked.store(true, Ordering::Release);
        drop(self.hang_up.take());
        if let Some(thread) = self.thread.take() {
            // Each wait of the work includes `wake`, and each loop a `check`: it ends within milliseconds.
            let _ = thread.join();
        }
    }
}

/// Runs `work` on a thread. Dropping the future cancels it and blocks until it has cleaned up.
pub(crate) async fn run<T: Send + 'static>(
    progress: &(dyn Fn(ImageProgress) + Send + Sync),
    work: impl FnOnce(&Task) -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    let pipe = fleetbox_os::fd::pipe().map_err(ImageError::io("make a pipe for", "the image thread"))?;
    let cancel = Arc::new(Cancel { asked: AtomicBool::new(false), wake: pipe.0 });
    let (tx, mut rx) = mpsc::unbounded_channel::<Message<T>>();
    let (ptx, mut prx) = mpsc::unbounded_channel();
    let task = Task { cancel: Arc::clone(&cancel), progress: Some(ptx) };
    let thread = std::thread::Builder::new()
        .name("image".into())
        .spawn(move || {
            let result = work(&task);
            let _ = tx.send(Message::Done(result));
        })
        .map_err(ImageError::io("start", "the image thread"))?;
    let running = Running { cancel, hang_up: Some(pipe.1), thread: Some(thread) };
    let result = loop {
        let message = tokio::select! {
            // Progress first: what was reported before the end is shown before it.
            biased;
            Some(p) = prx.recv() => Message::Progress(p),
            done = rx.recv() => done.unwrap_or(Message::Done(Err(ImageError::WorkerLost))),
        };
        match message {
            Message::Progress(p) => progress(p),
            Message::Done(result) => {
                while let Ok(p) = prx.try_recv() {
                    progress(p);
                }
                break result;
            }
        }
    };
    drop(running);
    result
}

impl AsFd for Task {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.cancel.wake.as_fd()
    }
}

/// A task that nobody waits for, and that ends when the descriptor is dropped.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn unattended() -> std::io::Result<(Task, OwnedFd)> {
    let (wake, hang_up) = fleetbox_os::fd::pipe()?;
    Ok((Task { cancel: Arc::new(Cancel { asked: AtomicBool::new(false), wake }), progress: None }, hang_up))
}

#[cfg(test)]
pub(crate) fn for_tests() -> (Task, OwnedFd) {
    unattended().unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ImageStage;
    use std::sync::Mutex;

    fn rt() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    #[test]
    fn progress_arrives_in_order_and_before_the_result() {
        let seen = Mutex::new(Vec::new());
        let sink = |p: ImageProgress| seen.lock().unwrap().push(p.detail);
        let result = rt().block_on(run(&sink, |task| {
            for i in 0..100 {
                task.report(ImageProgress { stage: ImageStage::Copy, detail: i.to_string(), progress: None });
            }
            Ok(7)
        }));
        assert_eq!(result.unwrap(), 7);
        assert_eq!(*seen.lock().unwrap(), (0..100).map(|i| i.to_string()).collect::<Vec<_>>());
    }

    #[test]
    fn a_dropped_future_ends_the_work_before_drop_returns() {
        let ended = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&ended);
        rt().block_on(async {
            let started = Arc::new(tokio::sync::Notify::new());
            let notify = Arc::clone(&started);
            let work = run(&|_| {}, move |task| {
                notify.notify_one();
                let r = task.pause(Duration::from_secs(600));
                flag.store(true, Ordering::Release);
                r
            });
            tokio::select! {
                _ = work => panic!("the pause cannot be over"),
                () = started.notified() => {}
            }
        });
        assert!(ended.load(Ordering::Acquire));
    }

    #[test]
    fn a_panic_in_the_work_is_an_error() {
        let result =
            rt().block_on(run::<()>(&|_| {}, |_| panic!("deliberate: shown by the test that asks for it")));
        assert!(matches!(result, Err(ImageError::WorkerLost)));
    }
}
