use serde_json::json;
use tokio::io::BufReader;
use tokio::io::{AsyncBufReadExt, Lines};

use super::*;

const LONG: Duration = Duration::from_secs(30);
const GREETING: &str = r#"{"QMP": {"version": {}, "capabilities": []}}"#;

/// The VMM's side of a connection, as the test plays it.
struct Peer(Lines<BufReader<UnixStream>>);

impl Peer {
    async fn say(&mut self, line: &str) {
        let socket = self.0.get_mut().get_mut();
        socket.write_all(format!("{line}\r\n").as_bytes()).await.unwrap();
    }

    /// The next command: its id and name.
    async fn hear(&mut self) -> (u64, String) {
        let line = self.0.next_line().await.unwrap().unwrap();
        let value: Value = serde_json::from_str(&line).unwrap();
        (value["id"].as_u64().unwrap(), value["execute"].as_str().unwrap().to_owned())
    }

    async fn answer(&mut self, id: u64, value: Value) {
        self.say(&json!({"return": value, "id": id}).to_string()).await;
    }
}

async fn connected() -> (Qmp, mpsc::UnboundedReceiver<Event>, Peer) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut peer = Peer(BufReader::new(theirs).lines());
    let greet = async {
        peer.say(GREETING).await;
        let (id, command) = peer.hear().await;
        assert_eq!(command, "qmp_capabilities");
        peer.answer(id, json!({})).await;
    };
    let (opened, ()) = tokio::join!(Qmp::open(ours, LONG), greet);
    let (qmp, events) = opened.unwrap();
    (qmp, events, peer)
}

#[tokio::test(flavor = "current_thread")]
async fn answers_find_their_callers_in_any_order() {
    let (qmp, mut events, mut peer) = connected().await;
    let vmm = async {
        let first = peer.hear().await;
        let second = peer.hear().await;
        peer.answer(second.0, json!(second.1)).await;
        peer.say(r#"{"event": "STOP"}"#).await;
        peer.answer(first.0, json!(first.1)).await;
    };
    let (stop, cont, ()) = tokio::join!(qmp.execute("stop", LONG), qmp.execute("cont", LONG), vmm);
    assert_eq!((stop.unwrap(), cont.unwrap()), (json!("stop"), json!("cont")));
    assert_eq!(events.recv().await, Some(Event { name: "STOP".into(), data: Value::Null }));
}

#[tokio::test(flavor = "current_thread")]
async fn a_silent_vmm_is_told_by_deadline_and_its_late_answer_reaches_nobody() {
    let (qmp, _events, mut peer) = connected().await;
    let short = Duration::from_millis(20);
    assert_eq!(qmp.execute("stop", short).await, Err(QmpError::NoAnswer(short)));
    let late = peer.hear().await;
    peer.answer(late.0, json!("late")).await;
    let vmm = async {
        let (id, command) = peer.hear().await;
        assert_eq!(command, "cont");
        peer.answer(id, json!("on time")).await;
    };
    let (cont, ()) = tokio::join!(qmp.execute("cont", LONG), vmm);
    assert_eq!(cont.unwrap(), json!("on time"));
}

#[tokio::test(flavor = "current_thread")]
async fn a_refusal_carries_its_text() {
    let (qmp, _events, mut peer) = connected().await;
    let vmm = async {
        let (id, _) = peer.hear().await;
        peer.say(&json!({"error": {"class": "GenericError", "desc": "not now"}, "id": id}).to_string()).await;
    };
    let (answer, ()) = tokio::join!(qmp.execute("stop", LONG), vmm);
    assert_eq!(answer, Err(QmpError::Refused("not now".into())));
}

#[tokio::test(flavor = "current_thread")]
async fn a_hang_up_ends_calls_and_events() {
    let (qmp, mut events, mut peer) = connected().await;
    let vmm = async {
        peer.hear().await;
        peer.say(r#"{"event": "SHUTDOWN", "data": {"reason": "host-signal"}}"#).await;
        drop(peer);
    };
    let (answer, ()) = tokio::join!(qmp.execute("quit", LONG), vmm);
    assert_eq!(answer, Err(QmpError::Closed));
    assert_eq!(events.recv().await.unwrap().name, "SHUTDOWN");
    assert_eq!(events.recv().await, None);
    assert_eq!(qmp.execute("stop", LONG).await, Err(QmpError::Closed));
}

#[tokio::test(flavor = "current_thread")]
async fn garbage_is_named_to_every_caller() {
    let (qmp, _events, mut peer) = connected().await;
    let vmm = async {
        peer.hear().await;
        peer.say("Segmentation fault").await;
    };
    let (answer, ()) = tokio::join!(qmp.execute("stop", LONG), vmm);
    assert_eq!(answer, Err(QmpError::Protocol("Segmentation fault".into())));
    assert_eq!(qmp.execute("stop", LONG).await, Err(QmpError::Protocol("Segmentation fault".into())));
}

#[tokio::test(flavor = "current_thread")]
async fn a_greeting_that_is_none_is_told() {
    let open = |line: &'static str| async move {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(line.as_bytes()).await.unwrap();
        drop(theirs);
        Qmp::open(ours, LONG).await.unwrap_err()
    };
    assert_eq!(open("").await, QmpError::Closed);
    assert_eq!(open("{\"QMP\"").await, QmpError::Closed);
    assert_eq!(open("SSH-2.0-x\r\n").await, QmpError::Protocol("SSH-2.0-x".into()));
    assert!(matches!(open("{\"event\":\"STOP\"}\n").await, QmpError::Protocol(_)));
}

#[tokio::test(flavor = "current_thread")]
async fn the_connection_closes_with_its_owner() {
    let (qmp, mut events, mut peer) = connected().await;
    drop(qmp);
    assert_eq!(events.recv().await, None);
    assert_eq!(peer.0.next_line().await.unwrap(), None);
}
