//! Killing everything that runs in one session of the machine.
//!
//! sshd runs each command in a session of its own (it calls `setsid`), so the login shell's process id is
//! the id of a session that holds the command and all it started, background children included, except
//! what called `setsid` itself. Closing the channel would kill none of it.

use std::sync::Arc;
use std::time::Duration;

use russh::client::Msg;
use russh::{Channel, ChannelMsg};
use tokio::time::timeout;

use crate::command::quote;
use crate::connection::{Connection, OpenError};

/// Sends TERM to all of session `$1`, one second later KILL, until none is left.
///
/// Exit codes: 0 none is left · 3 some belong to another user · 4 some are left. Candidates come from
/// `pgrep`, where it exists (reading every `/proc/*/stat` in a shell costs 0.2 s under emulation), but
/// whether they belong to the session is read from /proc in any case: the number after the last ")".
/// Zombies are as good as gone.
const SCRIPT: &str = r#"s=$1
scan() {
sig=$1 n=0 d=0
if command -v pgrep >/dev/null 2>&1; then
c=$(pgrep -s "$s" 2>/dev/null)
[ $? -le 1 ] || c=all
else c=all
fi
[ "$c" = all ] && c=$(cd /proc && echo [0-9]*)
for p in $c; do
l=
{ while IFS= read -r x || [ -n "$x" ]; do l="$l$x "; done < "/proc/$p/stat"; } 2>/dev/null || continue
set -- ${l##*) }
[ "$4" = "$s" ] || continue
case $1 in [ZXx]) continue ;; esac
if kill "-$sig" "$p" 2>/dev/null; then n=$((n+1))
elif [ -d "/proc/$p" ]; then n=$((n+1)) d=$((d+1))
fi
done
}
nap() { sleep 0.05 2>/dev/null || sleep 1; }
scan TERM
i=0
while [ $n -gt 0 ] && [ $d -eq 0 ] && [ $i -lt 20 ]; do nap; scan 0; i=$((i+1)); done
i=0
while [ $n -gt 0 ] && [ $d -eq 0 ] && [ $i -lt 40 ]; do scan KILL; [ $n -eq 0 ] || nap; i=$((i+1)); done
[ $n -eq 0 ] && exit 0
[ $d -gt 0 ] && exit 3
exit 4
"#;

/// The command line for session `sid`: as the user, and again with sudo if root's processes are in it.
pub(crate) fn line(sid: u32) -> Vec<u8> {
    let script = String::from_utf8_lossy(&quote(SCRIPT.as_bytes())).into_owned();
    let outer = format!(
        "k={script}\nsh -c \"$k\" sh {sid}\nr=$?\n\
         if [ $r -eq 3 ] && command -v sudo >/dev/null 2>&1; then exec sudo -n sh -c \"$k\" sh {sid}; fi\nexit $r"
    );
    [b"exec sh -c ".as_slice(), &quote(outer.as_bytes())].concat()
}

/// Kills session `sid` over the connection that carries its command: another connection could have
/// reached a machine that was rebooted, where the same id is somebody else's. True if the machine
/// confirmed that nothing is left. Runs to its end in a task of its own, whatever becomes of the command.
pub(crate) async fn session(connection: Arc<Connection>, sid: u32, limit: Duration) -> bool {
    let _slot = connection.kill_slot.lock().await;
    let mut channel = match connection.open_channel(limit).await {
        Ok(channel) => channel,
        Err(OpenError::Refused(error)) => {
            tracing::warn!(sid, %error, "no channel to kill a command's session");
            return false;
        }
        Err(OpenError::Lost(_) | OpenError::Timeout) => return false,
    };
    let status = timeout(limit, run(&mut channel, sid)).await.unwrap_or(None);
    let _ = channel.close().await;
    if status != Some(0) {
        tracing::warn!(sid, ?status, "a command's session could not be killed wholly");
    }
    status == Some(0)
}

/// The script's exit code; `None` if it did not say.
async fn run(channel: &mut Channel<Msg>, sid: u32) -> Option<u32> {
    channel.exec(true, line(sid)).await.ok()?;
    channel.eof().await.ok()?;
    let mut status = None;
    while let Some(message) = channel.wait().await {
        match message {
            ChannelMsg::ExitStatus { exit_status } => status = Some(exit_status),
            ChannelMsg::Close | ChannelMsg::Failure => break,
            _ => {}
        }
    }
    status
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A session of its own: a shell that ignores TERM, with a child and a grandchild, one of which bears
    /// a name that breaks careless readers of /proc/PID/stat.
    fn start(dir: &std::path::Path) -> (Child, u32) {
        let odd = dir.join("a) R 1 1\n1 (b");
        std::fs::copy("/bin/sleep", &odd).unwrap();
        let script = "trap '' TERM; sh -c 'trap - TERM; \"$0\" 1000 & exec sleep 1000' \"$1\" & wait; wait";
        let child = Command::new("setsid")
            .args(["-w", "sh", "-c", &format!("echo $$ >\"$2\"; {script}"), "sh"])
            .arg(&odd)
            .arg(dir.join("sid"))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        loop {
            let sid = std::fs::read_to_string(dir.join("sid")).ok().and_then(|text| text.trim().parse().ok());
            match sid {
                Some(sid) if members(sid).len() >= 3 => return (child, sid),
                _ => assert!(std::time::Instant::now() < deadline, "the session did not come up"),
            }
            std::thread::yield_now();
        }
    }

    fn members(sid: u32) -> Vec<String> {
        let stat = |entry: std::fs::DirEntry| std::fs::read_to_string(entry.path().join("stat")).ok();
        let in_session = |line: &String| {
            let fields: Vec<&str> =
                line.rsplit_once(") ").map_or(vec![], |(_, rest)| rest.split(' ').collect());
            fields.first() != Some(&"Z") && fields.get(3) == Some(&sid.to_string().as_str())
        };
        std::fs::read_dir("/proc").unwrap().flatten().filter_map(stat).filter(in_session).collect()
    }

    fn kills(path: Option<&OsStr>) {
        let dir = tempfile::tempdir().unwrap();
        let (mut child, sid) = start(dir.path());
        let mut kill = Command::new("/bin/sh");
        kill.arg("-c").arg(OsStr::from_bytes(&line(sid)));
        if let Some(path) = path {
            kill.env("PATH", path);
        }
        assert_eq!(kill.status().unwrap().code(), Some(0));
        assert_eq!(members(sid), Vec::<String>::new());
        child.wait().unwrap();
    }

    #[test]
    fn kills_a_session_that_resists() {
        kills(None);
    }

    #[test]
    fn kills_without_pgrep() {
        // A PATH with the three programs that the fallback needs.
        let dir = tempfile::tempdir().unwrap();
        for name in ["sh", "sleep"] {
            let real = ["/bin", "/usr/bin"].into_iter().map(|d| format!("{d}/{name}"));
            let real = real.into_iter().find(|path| std::path::Path::new(path).exists()).unwrap();
            std::os::unix::fs::symlink(real, dir.path().join(name)).unwrap();
        }
        kills(Some(dir.path().as_os_str()));
    }

    #[test]
    fn an_empty_session_is_success() {
        // No process can have this id: it is above the kernel's largest.
        let status =
            Command::new("/bin/sh").arg("-c").arg(OsStr::from_bytes(&line(4_194_305))).status().unwrap();
        assert_eq!(status.code(), Some(0));
    }
}
