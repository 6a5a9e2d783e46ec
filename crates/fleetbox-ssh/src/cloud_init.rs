//! Waiting until cloud-init has finished.

use std::time::{Duration, Instant};

use crate::client::Client;
use crate::command::{Command, quote};
use crate::error::{Error, Result};
use crate::output::Output;

/// How long one question waits on the machine, in the loop's turns of a quarter of a second.
const TURNS: u32 = 80;
/// Limit of one question: the turns' 20 s, and as much again for a slow machine.
const QUESTION_LIMIT: Duration = Duration::from_secs(40);
/// Exit codes of the question.
const FINISHED: u32 = 0;
const NOT_YET: u32 = 10;
const DISABLED: u32 = 11;

/// Waits on the machine, not by asking again and again. Finished is: `boot-finished` of this instance-id
/// exists (the link `/var/lib/cloud/instance` alone may still be a former instance's), and this boot's
/// result is there: /run is empty at boot, while `boot-finished` of an earlier boot stays on the disk.
/// `root` is empty on a machine.
fn question(root: &str, instance_id: &str) -> Vec<u8> {
    let mut text = [b"r=".as_slice(), &quote(root.as_bytes()), b"\ni="].concat();
    text.extend_from_slice(&quote(instance_id.as_bytes()));
    text.extend_from_slice(
        format!(
            r#"
n=0
while :; do
  if [ -e "$r/var/lib/cloud/instances/$i/boot-finished" ] && [ -s "$r/run/cloud-init/result.json" ]; then
    cat "$r/run/cloud-init/result.json"
    exit {FINISHED}
  fi
  if [ -e "$r/run/cloud-init/disabled" ]; then
    echo "disabled: /run/cloud-init/disabled exists"
    exit {DISABLED}
  fi
  n=$((n+1))
  [ $n -lt {TURNS} ] || break
  sleep 0.25
done
echo "instance $(readlink "$r/var/lib/cloud/instance" || echo none)"
cat "$r/run/cloud-init/status.json" 2>/dev/null || echo "no /run/cloud-init/status.json"
exit {NOT_YET}"#
        )
        .as_bytes(),
    );
    text
}

impl Client {
    /// Waits until cloud-init has finished this boot for the instance `instance_id`. The machine may
    /// reboot meanwhile (cloud-init can be told to): the question is asked again then.
    ///
    /// # Errors
    /// [`Error::CloudInitFailed`] if it finished with errors or is disabled, [`Error::CloudInitTimeout`]
    /// at the deadline with what the machine said last.
    pub async fn wait_cloud_init(&self, instance_id: &str, deadline: Instant) -> Result<()> {
        let start = Instant::now();
        let (mut last_seen, mut source) = ("nothing".to_owned(), None);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let instance_id = instance_id.to_owned();
                return Err(Error::CloudInitTimeout {
                    instance_id,
                    waited: start.elapsed(),
                    last_seen,
                    source,
                });
            }
            let ask = Command::shell(question("", instance_id)).timeout(left.min(QUESTION_LIMIT));
            match self.exec(ask).await {
                Ok(output) if output.status.code() == Some(FINISHED) => {
                    return match errors(&output.stdout) {
                        errors if errors.is_empty() => Ok(()),
                        errors => Err(Error::CloudInitFailed { instance_id: instance_id.to_owned(), errors }),
                    };
                }
                Ok(output) if output.status.code() == Some(DISABLED) => {
                    let errors = vec![summary(&output)];
                    return Err(Error::CloudInitFailed { instance_id: instance_id.to_owned(), errors });
                }
                Ok(output) => {
                    (last_seen, source) = (summary(&output), None);
                    // Anything but "not yet" came at once (a reboot killed the shell, say): no hurry then.
                    if output.status.code() != Some(NOT_YET) {
                        self.wait_ready(deadline, |_| {}).await?;
                        crate::io::run(tokio::time::sleep(Duration::from_millis(250))).await?;
                    }
                }
                // The question changes nothing, so it may be asked twice.
                Err(
                    error @ (Error::ConnectionLost { .. }
                    | Error::NoExitStatus { .. }
                    | Error::Timeout { .. }),
                ) => {
                    source = Some(Box::new(error));
                    self.wait_again(deadline).await?;
                }
                Err(error) if error.is_transient() => {
                    source = Some(Box::new(error));
                    self.wait_again(deadline).await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Until the machine is back; the deadline is the caller's to report.
    async fn wait_again(&self, deadline: Instant) -> Result<()> {
        match self.wait_ready(deadline, |_| {}).await {
            Err(Error::NotReady { .. }) => Ok(()),
            other => other,
        }
    }
}

/// The errors in `/run/cloud-init/result.json`. One that cannot be read is an error as well.
fn errors(json: &[u8]) -> Vec<String> {
    let text = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let parsed: Result<serde_json::Value, _> = serde_json::from_slice(json);
    match parsed.as_ref().map(|value| &value["v1"]["errors"]) {
        Ok(serde_json::Value::Array(errors)) => errors.iter().map(text).collect(),
        _ => vec![format!("unreadable result.json: {}", String::from_utf8_lossy(json).trim())],
    }
}

/// One line of what the machine said.
fn summary(output: &Output) -> String {
    let text =
        String::from_utf8_lossy(if output.stdout.is_empty() { &output.stderr } else { &output.stdout });
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.is_empty() { output.status.to_string() } else { line.chars().take(400).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(root: &std::path::Path) -> std::process::Output {
        use std::os::unix::ffi::OsStrExt;
        let text = question(root.to_str().unwrap(), "iid-1");
        // A quarter of a second per turn is for machines.
        let quick = format!("sleep() {{ command sleep 0.001; }}\n{}", String::from_utf8(text).unwrap());
        std::process::Command::new("sh")
            .arg("-c")
            .arg(std::ffi::OsStr::from_bytes(quick.as_bytes()))
            .output()
            .unwrap()
    }

    #[test]
    fn finished_means_this_instance_and_this_boot() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let not_yet = i32::try_from(NOT_YET).unwrap();
        let nothing = ask(dir.path());
        assert_eq!(nothing.status.code(), Some(not_yet));
        assert!(String::from_utf8(nothing.stdout).unwrap().contains("instance none"));

        // Another instance has finished; then this one did, in an earlier boot.
        write("var/lib/cloud/instances/iid-0/boot-finished", "");
        write("run/cloud-init/status.json", r#"{"v1": {"stage": "modules-config"}}"#);
        let other = ask(dir.path());
        assert_eq!(other.status.code(), Some(not_yet));
        assert!(String::from_utf8(other.stdout).unwrap().contains("modules-config"));
        write("var/lib/cloud/instances/iid-1/boot-finished", "");
        assert_eq!(ask(dir.path()).status.code(), Some(not_yet));

        write("run/cloud-init/result.json", r#"{"v1": {"errors": ["broken"]}}"#);
        let done = ask(dir.path());
        assert_eq!(done.status.code(), Some(0));
        assert_eq!(errors(&done.stdout), ["broken"]);
    }

    #[test]
    fn a_disabled_cloud_init_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("run/cloud-init")).unwrap();
        std::fs::write(dir.path().join("run/cloud-init/disabled"), "").unwrap();
        assert_eq!(ask(dir.path()).status.code(), i32::try_from(DISABLED).ok());
    }

    #[test]
    fn results_as_cloud_init_writes_them() {
        let good = br#"{"v1": {"datasource": "DataSourceNoCloud [seed=/dev/vdb]", "errors": []}}"#;
        assert!(errors(good).is_empty());
        let bad = br#"{"v1": {"datasource": null, "errors": ["('scripts_user', RuntimeError('x'))"]}}"#;
        assert_eq!(errors(bad), ["('scripts_user', RuntimeError('x'))"]);
        assert_eq!(errors(b"{").len(), 1);
        assert_eq!(errors(b"{}").len(), 1);
    }
}
