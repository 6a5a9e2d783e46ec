//! Connections: how many, and what happens when they die.

use std::sync::Arc;
use std::time::Duration;

use fleetbox_ssh::{Client, Error, Options};
use futures_util::future::join_all;
use libtest_mimic::Trial;

use crate::fixture::{Sshd, signal, token, wait_asleep, wait_for, wait_gone, with_word};
use crate::own;

pub(crate) fn trials(sshd: &Option<Arc<Sshd>>) -> Vec<Trial> {
    vec![
        own("thirty_at_once", sshd, thirty_at_once),
        own("one_connection_is_kept", sshd, one_connection_is_kept),
        own("a_server_that_allows_fewer_sessions", sshd, a_server_that_allows_fewer_sessions),
        own("a_broken_connection_fails_its_command_only", sshd, a_broken_connection_fails_its_command_only),
        own("a_silent_server_is_noticed", sshd, a_silent_server_is_noticed),
        own("a_restarted_server_is_found_again", sshd, a_restarted_server_is_found_again),
        own("nothing_listens", sshd, nothing_listens),
    ]
}

async fn all_succeed(client: &Client, count: usize, sleep: &str) {
    let run = async |number: usize| {
        let output = client.exec(format!("sleep {sleep}; echo {number}")).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{number}\n"));
    };
    join_all((0..count).map(run)).await;
}

async fn thirty_at_once() {
    let sshd = Sshd::start("MaxSessions 10\nMaxStartups 10:30:100");
    let mut options = Options::default();
    options.grow_after = Duration::from_millis(20);
    let client = sshd.client_with(options);
    all_succeed(&client, 30, "0.5").await;
    assert!((2..=4).contains(&client.connections()), "{}", client.connections());
    assert_eq!(sshd.connections().len(), client.connections());
    // Within its own limit of connections, the rest queues.
    let mut options = Options::default();
    options.max_connections = 1;
    let client = sshd.client_with(options);
    all_succeed(&client, 30, "0.05").await;
    assert_eq!(client.connections(), 1);
}

async fn one_connection_is_kept() {
    let sshd = Sshd::start("");
    let client = sshd.client();
    let ports = async || client.exec("echo $SSH_CONNECTION").await.unwrap().stdout;
    let first = ports().await;
    assert_eq!(first, ports().await);
    assert_eq!(sshd.connections().len(), 1);
    client.disconnect();
    wait_for("the connection's end", || sshd.connections().is_empty()).await;
    assert_ne!(first, ports().await);
    // The last client closes it.
    drop(client);
    wait_for("the connection's end", || sshd.connections().is_empty()).await;
}

async fn a_server_that_allows_fewer_sessions() {
    let sshd = Sshd::start("MaxSessions 3");
    let mut options = Options::default();
    options.max_connections = 1;
    let client = sshd.client_with(options);
    all_succeed(&client, 12, "0.1").await;
    all_succeed(&client, 12, "0").await;
    assert_eq!(client.connections(), 1);
}

async fn a_broken_connection_fails_its_command_only() {
    let sshd = Sshd::start("");
    let client = sshd.client();
    let word = token();
    let running = client.exec(format!("sleep {word}"));
    let breaking = async {
        wait_asleep(&word).await;
        sshd.connections().into_iter().for_each(|id| signal(id, "KILL"));
    };
    let (result, ()) = tokio::join!(running, breaking);
    match result {
        Err(error @ Error::ConnectionLost { dispatched: true, .. }) => assert!(!error.is_transient()),
        other => panic!("{other:?}"),
    }
    // The next command finds a new connection, and the lost one was not sent again.
    assert_eq!(client.exec("echo next").await.unwrap().stdout, b"next\n");
    assert_eq!(with_word(&word).len(), 1);
    with_word(&word).into_iter().for_each(|id| signal(id, "KILL"));
    wait_gone(&word).await;
    // A connection that dies while nobody uses it costs nobody anything.
    sshd.connections().into_iter().for_each(|id| signal(id, "KILL"));
    assert_eq!(client.exec("echo idle").await.unwrap().stdout, b"idle\n");
}

async fn a_silent_server_is_noticed() {
    // The kernel acknowledges, sshd does not answer: as a machine that hangs.
    let sshd = Sshd::start("");
    let mut options = Options::default();
    options.keepalive_interval = Duration::from_secs(1);
    options.keepalive_max = 2;
    let client = sshd.client_with(options);
    let word = token();
    let running = client.exec(format!("sleep {word}"));
    let stopping = async {
        wait_asleep(&word).await;
        sshd.connections().into_iter().for_each(|id| signal(id, "STOP"));
    };
    let (result, ()) = tokio::join!(running, stopping);
    assert!(
        matches!(result, Err(Error::ConnectionLost { dispatched: true, source: Some(_), .. })),
        "{result:?}"
    );
    assert_eq!(client.exec("echo next").await.unwrap().stdout, b"next\n");
    with_word(&word).into_iter().for_each(|id| signal(id, "KILL"));
}

async fn a_restarted_server_is_found_again() {
    let sshd = Sshd::start("");
    let client = sshd.client();
    assert!(client.exec("true").await.unwrap().status.success());
    sshd.stop();
    let error = client.exec("true").await.unwrap_err();
    assert!(matches!(error, Error::Connect { .. }) && error.is_transient(), "{error:?}");
    sshd.launch();
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    client.wait_ready(deadline, |_| {}).await.unwrap();
    assert!(client.exec("true").await.unwrap().status.success());
}

async fn nothing_listens() {
    let sshd = Sshd::prepare("");
    let client = sshd.client();
    // All that wait for the same attempt get its error.
    for result in join_all((0..5).map(|_| client.exec("true"))).await {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::Connect { .. }), "{error:?}");
        assert_eq!(error.to_string(), format!("connect to {}", sshd.target.addr));
        assert!(std::error::Error::source(&error).unwrap().to_string().contains("refused"));
    }
}
