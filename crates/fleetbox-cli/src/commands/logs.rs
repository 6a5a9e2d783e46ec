//! `fleetbox logs`

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use crate::args::Logs;
use crate::error::{CliError, Result};
use crate::exit::Exit;
use crate::output;

/// How often a console that is followed is looked at.
const PAUSE: Duration = Duration::from_millis(200);

pub(crate) async fn run(args: &Logs) -> Result {
    let path = fleetbox::console_log(&args.name)?;
    let mut log = Tail::default();
    let there = log.print_new(&path)?;
    if !args.follow {
        if !there {
            output::note(&format!(
                "machine {} has never been booted: there is no console output yet",
                args.name
            ));
        }
        return Ok(Exit::Ok);
    }
    // Ctrl-C ends the process, as it ends `tail -f`.
    loop {
        tokio::time::sleep(PAUSE).await;
        // Removed, and its folder with it: nothing will ever be written again.
        if !log.print_new(&path)? && !path.parent().is_some_and(Path::exists) {
            return Ok(Exit::Ok);
        }
    }
}

/// A file that grows.
#[derive(Debug, Default)]
struct Tail {
    file: Option<File>,
    read: u64,
}

impl Tail {
    /// Prints what is new. `false` when there is no file.
    fn print_new(&mut self, path: &Path) -> Result<bool> {
        let failed = |source| CliError::ConsoleLog { path: path.to_owned(), source };
        // Looked up by name each time: a machine that is removed and made again has another file.
        let there = match path.metadata() {
            Ok(metadata) => Some(metadata),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(failed(e)),
        };
        let Some(there) = there else {
            *self = Self::default();
            return Ok(false);
        };
        use std::os::unix::fs::MetadataExt;
        let same = match &self.file {
            Some(file) => file.metadata().map_err(failed)?.ino() == there.ino() && there.len() >= self.read,
            None => false,
        };
        if !same {
            self.file = Some(File::open(path).map_err(failed)?);
            self.read = 0;
        }
        let Some(file) = &mut self.file else { return Ok(false) };
        file.seek(SeekFrom::Start(self.read)).map_err(failed)?;
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let n = file.read(&mut buffer).map_err(failed)?;
            let Some(new) = buffer.get(..n).filter(|new| !new.is_empty()) else { return Ok(true) };
            output::print_bytes(new)?;
            self.read += n as u64;
        }
    }
}
