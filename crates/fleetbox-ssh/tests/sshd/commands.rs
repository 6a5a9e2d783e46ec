//! Output, status, input, quoting: what one command does.

use std::process::Command as Process;
use std::sync::Arc;
use std::time::Duration;

use fleetbox_ssh::{Client, Command, Error, Event, ExitStatus, KeyPair, Options, Target};
use fleetbox_ssh::{ensure_key_pair, generate_host_key, parse_public_line};
use libtest_mimic::Trial;

use crate::fixture::Sshd;
use crate::shared;

pub(crate) fn trials(sshd: &Option<Arc<Sshd>>) -> Vec<Trial> {
    vec![
        shared("streams_are_separate", sshd, streams_are_separate),
        shared("status_and_signal", sshd, status_and_signal),
        shared("text_as_ssh_would_run_it", sshd, text_as_ssh_would_run_it),
        shared("a_mebibyte_both_ways", sshd, a_mebibyte_both_ways),
        shared("input_that_nobody_reads", sshd, input_that_nobody_reads),
        shared("bytes_that_are_not_utf8", sshd, bytes_that_are_not_utf8),
        shared("environment_and_directory", sshd, environment_and_directory),
        shared("a_session_is_a_conversation", sshd, a_session_is_a_conversation),
        shared("sessions_do_not_hold_each_other_up", sshd, sessions_do_not_hold_each_other_up),
        shared("wrong_host_key", sshd, wrong_host_key),
        shared("wrong_key", sshd, wrong_key),
        shared("the_key_works_with_the_systems_ssh", sshd, the_key_works_with_the_systems_ssh),
    ]
}

async fn streams_are_separate(sshd: Arc<Sshd>) {
    let output = sshd.client().exec("echo out; echo err >&2; echo out2; echo err2 >&2").await.unwrap();
    assert_eq!(output.status, ExitStatus::Code(0));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "out\nout2\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "err\nerr2\n");
}

async fn status_and_signal(sshd: Arc<Sshd>) {
    let client = sshd.client();
    let signal = |name: &str| ExitStatus::Signal { name: name.into(), core_dumped: false };
    for code in [0, 1, 42, 255] {
        assert_eq!(client.exec(format!("exit {code}")).await.unwrap().status, ExitStatus::Code(code));
    }
    assert_eq!(client.exec("ulimit -c 0; kill -KILL $$").await.unwrap().status, signal("KILL"));
    let text = "exec sh -c 'ulimit -c 0; kill -SEGV $$'";
    assert_eq!(client.exec(text).await.unwrap().status, signal("SEGV"));
    let program = Command::args(["sh", "-c", "kill -TERM $$"]);
    assert_eq!(client.exec(program).await.unwrap().status, signal("TERM"));
    // A child's signal, seen by the shell.
    assert_eq!(client.exec("sh -c 'kill -9 $$'; exit $?").await.unwrap().status, ExitStatus::Code(137));
    assert_eq!(client.exec(Command::args(["/no/such"])).await.unwrap().status, ExitStatus::Code(127));
}

async fn text_as_ssh_would_run_it(sshd: Arc<Sshd>) {
    let client = sshd.client();
    for (text, expected) in [
        ("cat <<EOF\na $((1 + 1))\nEOF\n", "a 2\n"),
        ("echo one # comment", "one\n"),
        ("echo two \\", "two \\\n"),
        ("echo \"it's\" 'a \"b\"'\necho $'x'", "it's a \"b\"\n"),
        ("cd /usr\npwd", "/usr\n"),
    ] {
        let output = client.exec(text).await.unwrap();
        assert!(output.stdout.starts_with(expected.as_bytes()), "{text:?}: {output:?}");
        assert!(output.stderr.is_empty(), "{text:?}: {output:?}");
    }
    // Nothing of ours may be seen in the command's surroundings.
    let output = client.exec("env; set -o | grep errexit; echo $#").await.unwrap();
    assert!(!String::from_utf8_lossy(&output.stdout).contains("fleetbox:"), "{output:?}");
}

fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(len).collect()
}

async fn a_mebibyte_both_ways(sshd: Arc<Sshd>) {
    let client = sshd.client();
    let data = noise(1 << 20);
    let output = client.exec(Command::shell("cat").stdin(data.clone())).await.unwrap();
    assert!(output.status.success() && output.stdout == data && output.stderr.is_empty());
    let output = client.exec(Command::args(["sh", "-c", "cat >&2"]).stdin(data.clone())).await.unwrap();
    assert!(output.status.success() && output.stderr == data && output.stdout.is_empty());
    // More than a channel's window (2 MiB).
    let data = noise(9 << 20);
    let output = client.exec(Command::shell("cat").stdin(data.clone())).await.unwrap();
    assert!(output.stdout == data);
}

async fn input_that_nobody_reads(sshd: Arc<Sshd>) {
    let client = sshd.client();
    let data = vec![b'x'; 9 << 20];
    let output = client.exec(Command::shell("head -c 3; exit 7").stdin(data)).await.unwrap();
    assert_eq!((output.status, output.stdout), (ExitStatus::Code(7), b"xxx".to_vec()));
    // No input at all is an empty one.
    assert!(client.exec("cat").await.unwrap().stdout.is_empty());
}

async fn bytes_that_are_not_utf8(sshd: Arc<Sshd>) {
    let client = sshd.client();
    let output = client.exec("printf '\\377\\000\\376'; printf '\\200\\036' >&2").await.unwrap();
    assert_eq!((output.stdout, output.stderr), (vec![0xff, 0, 0xfe], vec![0x80, 0x1e]));
    let arguments = [b"printf".to_vec(), b"%s".to_vec(), b"\xff\xfe ' $x".to_vec()];
    assert_eq!(client.exec(Command::args(arguments)).await.unwrap().stdout, b"\xff\xfe ' $x");
}

async fn environment_and_directory(sshd: Arc<Sshd>) {
    let client = sshd.client();
    let command = Command::shell("pwd; printf %s \"$NAME\"").env("NAME", "a\n'b' $c").cwd("/usr/lib");
    assert_eq!(client.exec(command).await.unwrap().stdout, b"/usr/lib\na\n'b' $c");
    let output = client.exec(Command::args(["pwd"]).cwd("/no/such")).await.unwrap();
    assert!(!output.status.success() && output.stdout.is_empty() && !output.stderr.is_empty(), "{output:?}");
}

async fn a_session_is_a_conversation(sshd: Arc<Sshd>) {
    let mut session =
        sshd.client().spawn("while read line; do echo \"got $line\"; done; exit 3").await.unwrap();
    for word in ["one", "two"] {
        session.write_stdin(format!("{word}\n")).await.unwrap();
        let expected = format!("got {word}\n");
        let mut seen = Vec::new();
        while seen.len() < expected.len() {
            match session.next_event().await.unwrap() {
                Some(Event::Stdout(bytes)) => seen.extend_from_slice(&bytes),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(seen, expected.as_bytes());
    }
    session.close_stdin();
    assert_eq!(session.next_event().await.unwrap(), Some(Event::Exit(ExitStatus::Code(3))));
    assert_eq!(session.next_event().await.unwrap(), None);
    assert!(matches!(session.write_stdin("late").await, Err(Error::StdinClosed { .. })));
}

async fn sessions_do_not_hold_each_other_up(sshd: Arc<Sshd>) {
    let options = {
        let mut o = Options::default();
        o.max_connections = 1;
        o
    };
    let client = sshd.client_with(options);
    // One does not read its input, one's output is not read; both are far over a window.
    let deaf = client.spawn("sleep 1000").await.unwrap();
    let stuffed = async {
        for _ in 0..8 {
            deaf.write_stdin(vec![0; 1 << 20]).await.unwrap();
        }
    };
    assert!(tokio::time::timeout(Duration::from_millis(300), stuffed).await.is_err(), "it has to be stuck");
    let mut unread = client.spawn("head -c 9000000 /dev/zero").await.unwrap();
    assert_eq!(client.exec("echo through").await.unwrap().stdout, b"through\n");
    assert_eq!(client.connections(), 1);
    let mut length = 0;
    while let Some(event) = unread.next_event().await.unwrap() {
        match event {
            Event::Stdout(bytes) => length += bytes.len(),
            other => assert_eq!(other, Event::Exit(ExitStatus::Code(0))),
        }
    }
    assert_eq!(length, 9_000_000);
    deaf.kill().await.unwrap();
}

async fn wrong_host_key(sshd: Arc<Sshd>) {
    let other = parse_public_line(&generate_host_key().unwrap().public_line).unwrap();
    let target = Target { host_key: other.clone(), ..sshd.target.clone() };
    let client = Client::new(target, sshd.key.clone(), Options::default());
    match client.exec("true").await {
        Err(Error::HostKeyMismatch { expected, actual, .. }) => {
            let print = |key: &fleetbox_ssh::PublicKey| key.fingerprint(Default::default()).to_string();
            assert_eq!((expected, actual), (print(&other), print(&sshd.target.host_key)));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(client.connections(), 0);
}

async fn wrong_key(sshd: Arc<Sshd>) {
    let dir = tempfile::tempdir().unwrap();
    let key: KeyPair = ensure_key_pair(&dir.path().join("id")).unwrap();
    let error = Client::new(sshd.target.clone(), key, Options::default()).exec("true").await.unwrap_err();
    assert!(matches!(&error, Error::AuthRejected { .. }) && !error.is_transient(), "{error:?}");
}

async fn the_key_works_with_the_systems_ssh(sshd: Arc<Sshd>) {
    let dir = sshd.dir.path();
    let (addr, host_key) = (sshd.target.addr, sshd.target.host_key.to_openssh().unwrap());
    let known = dir.join("known_hosts");
    std::fs::write(&known, format!("[{}]:{} {host_key}\n", addr.ip(), addr.port())).unwrap();
    let output = Process::new("ssh")
        .args([
            "-F",
            "none",
            "-o",
            "BatchMode=yes",
            "-o",
            "IdentitiesOnly=yes",
            "-o",
            "StrictHostKeyChecking=yes",
        ])
        .arg("-o")
        .arg(format!("UserKnownHostsFile={}", known.display()))
        .arg("-i")
        .arg(dir.join("id_ed25519"))
        .args(["-p", &addr.port().to_string()])
        .arg(format!("{}@{}", sshd.target.user, addr.ip()))
        .arg("echo in")
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "in\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
