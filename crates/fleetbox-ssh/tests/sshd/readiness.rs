//! Waiting for a machine that is not there yet.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fleetbox_ssh::{Attempt, Client, Error, Options, Stage, Target, generate_host_key, parse_public_line};
use libtest_mimic::Trial;
use tokio::io::AsyncReadExt;

use crate::fixture::Sshd;
use crate::{own, shared};

pub(crate) fn trials(sshd: &Option<Arc<Sshd>>) -> Vec<Trial> {
    vec![
        own("a_late_server_is_met", sshd, a_late_server_is_met),
        own("the_deadline_reports_the_last_error", sshd, the_deadline_reports_the_last_error),
        own("a_key_that_comes_late_is_waited_for", sshd, a_key_that_comes_late_is_waited_for),
        own("a_server_that_says_nothing", sshd, a_server_that_says_nothing),
        shared("a_wrong_host_key_is_not_waited_for_long", sshd, a_wrong_host_key_is_not_waited_for_long),
        shared("two_may_wait_for_one_machine", sshd, two_may_wait_for_one_machine),
    ]
}

fn soon(seconds: u64) -> Instant {
    Instant::now() + Duration::from_secs(seconds)
}

async fn a_late_server_is_met() {
    let sshd = Sshd::prepare("");
    let client = sshd.client();
    let mut seen: Vec<Attempt> = Vec::new();
    let observer = |attempt: Attempt| {
        if attempt.number == 3 {
            sshd.launch();
        }
        seen.push(attempt);
    };
    client.wait_ready(soon(20), observer).await.unwrap();
    assert!(seen.len() >= 4, "{seen:?}");
    assert!(seen[..3].iter().all(|attempt| attempt.stage == Stage::Unreachable && attempt.error.is_some()));
    let last = seen.last().unwrap();
    assert!(last.stage == Stage::Ready && last.error.is_none() && last.number as usize == seen.len());
    // The connection is kept for what follows, and asking again is answered by it.
    assert_eq!(client.connections(), 1);
    client.wait_ready(soon(5), |_| {}).await.unwrap();
    assert!(client.exec("true").await.unwrap().status.success());
    assert_eq!(sshd.connections().len(), 1);
}

async fn the_deadline_reports_the_last_error() {
    let sshd = Sshd::prepare("");
    let deadline = Instant::now() + Duration::from_secs(1);
    match sshd.client().wait_ready(deadline, |_| {}).await {
        Err(Error::NotReady { attempts, source: Some(source), .. }) => {
            assert!(attempts >= 2, "{attempts}");
            assert!(matches!(*source, Error::Connect { .. }), "{source:?}");
        }
        other => panic!("{other:?}"),
    }
    let now = sshd.client().wait_ready(Instant::now(), |_| {}).await;
    assert!(matches!(now, Err(Error::NotReady { attempts: 0, source: None, .. })), "{now:?}");
}

async fn a_key_that_comes_late_is_waited_for() {
    let sshd = Sshd::start("");
    let authorized = sshd.dir.path().join("authorized_keys");
    std::fs::write(&authorized, "").unwrap();
    let mut stages = Vec::new();
    let observer = |attempt: Attempt| {
        stages.push(attempt.stage);
        std::fs::write(&authorized, &sshd.key.public_line).unwrap();
    };
    sshd.client().wait_ready(soon(20), observer).await.unwrap();
    assert_eq!(stages, [Stage::Login, Stage::Ready]);
}

async fn a_server_that_says_nothing() {
    // Accepts and is silent, then closes: as a port whose service is not up.
    let sshd = Sshd::prepare("");
    let listener = tokio::net::TcpListener::bind(sshd.target.addr).await.unwrap();
    let server = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut greeting = [0; 8];
        socket.read_exact(&mut greeting).await.unwrap();
        greeting
    });
    let mut stages = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(2);
    let error = sshd.client().wait_ready(deadline, |attempt| stages.push(attempt.stage)).await.unwrap_err();
    assert!(matches!(error, Error::NotReady { .. }), "{error:?}");
    assert_eq!(stages.first(), Some(&Stage::Tcp));
    assert_eq!(&server.await.unwrap(), b"SSH-2.0-");
}

async fn a_wrong_host_key_is_not_waited_for_long(sshd: Arc<Sshd>) {
    let host_key = parse_public_line(&generate_host_key().unwrap().public_line).unwrap();
    let client =
        Client::new(Target { host_key, ..sshd.target.clone() }, sshd.key.clone(), Options::default());
    let mut stages = Vec::new();
    let error = client.wait_ready(soon(60), |attempt| stages.push(attempt.stage)).await.unwrap_err();
    assert!(matches!(error, Error::HostKeyMismatch { .. }), "{error:?}");
    assert!(stages.len() > 2 && stages.iter().all(|stage| *stage == Stage::WrongHostKey), "{stages:?}");
}

async fn two_may_wait_for_one_machine(sshd: Arc<Sshd>) {
    let client = sshd.client();
    let (one, two, run) = tokio::join!(
        client.wait_ready(soon(20), |_| {}),
        client.wait_ready(soon(20), |_| {}),
        client.exec("echo meanwhile"),
    );
    one.unwrap();
    two.unwrap();
    assert_eq!(run.unwrap().stdout, b"meanwhile\n");
    assert_eq!(client.connections(), 1);
}
