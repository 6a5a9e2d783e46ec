//! Whatever ends a command early kills everything that it started.

use std::sync::Arc;
use std::time::Duration;

use fleetbox_ssh::{Command, Error, Event, ExitStatus, Options, Session, Stream};
use futures_util::future::join_all;
use libtest_mimic::Trial;

use crate::fixture::{Sshd, token, wait_gone, wait_there, with_word};
use crate::shared;

pub(crate) fn trials(sshd: &Option<Arc<Sshd>>) -> Vec<Trial> {
    vec![
        shared("timeout_kills_grandchildren", sshd, timeout_kills_grandchildren),
        shared("timeout_kills_what_ignores_term", sshd, timeout_kills_what_ignores_term),
        shared("timeout_kills_what_the_ended_command_left", sshd, timeout_kills_what_the_ended_command_left),
        shared("timeout_keeps_the_output", sshd, timeout_keeps_the_output),
        shared("drop_kills", sshd, drop_kills),
        shared("drop_kills_though_the_runtime_is_gone", sshd, drop_kills_though_the_runtime_is_gone),
        shared("dropped_session_is_killed", sshd, dropped_session_is_killed),
        shared("kill_ends_a_session", sshd, kill_ends_a_session),
        shared("too_much_output_kills", sshd, too_much_output_kills),
        shared("a_full_connection_still_kills", sshd, a_full_connection_still_kills),
    ]
}

async fn times_out(sshd: &Sshd, text: String, word: &str, processes: usize) {
    let client = sshd.client();
    // Connected beforehand, so that all of the time is the command's.
    assert!(client.exec("true").await.unwrap().status.success());
    let running = client.exec(Command::shell(text).timeout(Duration::from_secs(3)));
    let (result, ()) = tokio::join!(running, wait_there(word, processes));
    match result {
        Err(Error::Timeout { dispatched: true, killed: true, .. }) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(with_word(word), Vec::<u32>::new(), "confirmed, so nothing may be left");
    assert!(client.exec("true").await.unwrap().status.success());
}

async fn timeout_kills_grandchildren(sshd: Arc<Sshd>) {
    let word = token();
    times_out(&sshd, format!("sh -c 'sleep {word} & sleep {word}'"), &word, 3).await;
}

async fn timeout_kills_what_ignores_term(sshd: Arc<Sshd>) {
    let word = token();
    let text = format!("trap '' TERM; (trap '' TERM; sleep {word} & wait) & sleep {word}; sleep {word}");
    times_out(&sshd, text, &word, 3).await;
}

async fn timeout_kills_what_the_ended_command_left(sshd: Arc<Sshd>) {
    // The shell has ended; a background process holds its output open.
    let word = token();
    times_out(&sshd, format!("sleep {word} & exit 0"), &word, 1).await;
}

async fn timeout_keeps_the_output(sshd: Arc<Sshd>) {
    let client = sshd.client();
    assert!(client.exec("true").await.unwrap().status.success());
    let command = Command::shell("echo out; echo err >&2; sleep 1000").timeout(Duration::from_secs(3));
    match client.exec(command).await {
        Err(Error::Timeout { output, .. }) => {
            assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
        }
        other => panic!("{other:?}"),
    }
}

async fn drop_kills(sshd: Arc<Sshd>) {
    let word = token();
    let client = sshd.client();
    tokio::select! {
        result = client.exec(format!("sleep {word} & sleep {word}")) => panic!("{result:?}"),
        () = wait_there(&word, 2) => {}
    }
    wait_gone(&word).await;
    assert_eq!(client.exec("echo next").await.unwrap().stdout, b"next\n");
}

async fn drop_kills_though_the_runtime_is_gone(sshd: Arc<Sshd>) {
    let word = token();
    let client = sshd.client();
    let text = format!("sleep {word}");
    let there = word.clone();
    let other = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            tokio::select! {
                result = client.exec(text) => panic!("{result:?}"),
                () = wait_there(&there, 1) => {}
            }
        });
        drop(runtime);
        client
    });
    let client = other.join().unwrap();
    wait_gone(&word).await;
    // The connection that the other runtime asked for serves this one.
    assert_eq!(client.connections(), 1);
    assert!(client.exec("true").await.unwrap().status.success());
    assert_eq!(client.connections(), 1);
}

async fn dropped_session_is_killed(sshd: Arc<Sshd>) {
    let word = token();
    let session = sshd.client().spawn(format!("sleep {word}")).await.unwrap();
    wait_there(&word, 1).await;
    drop(session);
    wait_gone(&word).await;
}

async fn kill_ends_a_session(sshd: Arc<Sshd>) {
    let word = token();
    let mut session =
        sshd.client().spawn(format!("echo up; sleep {word} & exec sleep {word}")).await.unwrap();
    assert_eq!(session.next_event().await.unwrap(), Some(Event::Stdout("up\n".into())));
    session.kill().await.unwrap();
    assert_eq!(with_word(&word), Vec::<u32>::new());
    let end = ExitStatus::Signal { name: "TERM".into(), core_dumped: false };
    assert_eq!(session.next_event().await.unwrap(), Some(Event::Exit(end)));
    assert_eq!(session.next_event().await.unwrap(), None);
    session.kill().await.unwrap();
}

async fn too_much_output_kills(sshd: Arc<Sshd>) {
    let client = sshd.client();
    for (redirect, overflown) in [("", Stream::Stdout), (" >&2", Stream::Stderr)] {
        let word = token();
        let command = Command::shell(format!("yes {word}{redirect}")).output_limit(1 << 20);
        match client.exec(command).await {
            Err(Error::OutputTooLarge { stream, limit: 1_048_576, killed: true, .. }) => {
                assert_eq!(stream, overflown)
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(with_word(&word), Vec::<u32>::new());
    }
    let command = Command::shell("head -c 1048576 /dev/zero").output_limit(1 << 20);
    assert_eq!(client.exec(command).await.unwrap().stdout.len(), 1 << 20, "the limit itself is allowed");
}

async fn a_full_connection_still_kills(sshd: Arc<Sshd>) {
    let mut options = Options::default();
    options.max_connections = 1;
    let client = sshd.client_with(options);
    let word = token();
    let running = join_all((0..9).map(|_| client.spawn(format!("sleep {word}")))).await;
    let running: Vec<Session> = running.into_iter().map(Result::unwrap).collect();
    wait_there(&word, 9).await;
    // A tenth command finds no place, and was never sent when its time is over.
    let tenth =
        client.exec(Command::shell(format!("sleep {word}")).timeout(Duration::from_millis(300))).await;
    assert!(matches!(tenth, Err(Error::Timeout { dispatched: false, .. })), "{tenth:?}");
    assert_eq!(with_word(&word).len(), 9);
    for killed in join_all(running.iter().map(Session::kill)).await {
        killed.unwrap();
    }
    assert_eq!(with_word(&word), Vec::<u32>::new());
    assert_eq!(client.connections(), 1);
    assert!(client.exec("true").await.unwrap().status.success());
}
