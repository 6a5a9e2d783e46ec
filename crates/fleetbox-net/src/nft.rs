//! The `nft` program, spoken to in JSON (libnftables-json(5)).
//!
//! An `nft` that changes something outlives an owner that is killed while it runs, and would make a table
//! after that owner's undo. So each such run holds a lock, in its stdout, which the kernel gives up when both have ended;
//! whoever undoes a dead owner's work waits for it first ([`Runs::have_ended`]).

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{File, TryLockError};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use fleetbox_spec::ClusterName;
use fleetbox_store::{LockKind, Store};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::NetError;
use crate::ruleset::bridge_of_table;

/// A ruleset of ten thousand rules takes a second or two to list.
const DEADLINE: Duration = Duration::from_secs(20);

/// What `nft` wrote to its stderr.
#[derive(Debug)]
pub(crate) struct NftSaid(String);

impl fmt::Display for NftSaid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Its first lines: the complaint. What follows is the JSON that was sent, and a row of carets.
        let lines: Vec<&str> = self.0.lines().map(str::trim).filter(|l| l.starts_with("Error")).collect();
        match lines.first() {
            Some(_) => f.write_str(&lines.join("; ")),
            None => f.write_str(self.0.trim()),
        }
    }
}

impl std::error::Error for NftSaid {}

impl NftSaid {
    fn is_not_found(&self) -> bool {
        self.0.contains("No such file or directory")
    }
}

/// The runs of `nft` that change something for one cluster.
#[derive(Debug, Clone)]
pub(crate) struct Runs(PathBuf);

impl Runs {
    pub(crate) fn of(store: &Store, cluster: &ClusterName) -> Self {
        Self(store.lock_file(LockKind::Reconcile, &format!("nft/{cluster}")))
    }

    fn open(&self) -> Result<File, NetError> {
        let open = File::options().read(true).append(true).create(true).open(&self.0);
        open.map_err(|source| NetError::Proc { action: "open the lock of nft's runs", source })
    }

    /// A descriptor that keeps others waiting as long as any copy of it is open.
    async fn begin(&self) -> Result<File, NetError> {
        let file = self.open()?;
        self.wait(|| file.try_lock_shared()).await?;
        Ok(file)
    }

    /// Waits until no run that somebody else began goes on.
    pub(crate) async fn have_ended(&self) -> Result<(), NetError> {
        let file = self.open()?;
        self.wait(|| file.try_lock()).await
    }

    async fn wait(&self, mut lock: impl FnMut() -> Result<(), TryLockError>) -> Result<(), NetError> {
        let started = Instant::now();
        loop {
            match lock() {
                Ok(()) => return Ok(()),
                Err(TryLockError::Error(source)) => {
                    return Err(NetError::Proc { action: "take the lock of nft's runs", source });
                }
                Err(TryLockError::WouldBlock) if started.elapsed() > DEADLINE => {
                    let what = "another process's rules".to_owned();
                    return Err(NetError::NftTimeout {
                        action: "see the end of the change to",
                        what,
                        after: DEADLINE,
                    });
                }
                Err(TryLockError::WouldBlock) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }
}

/// Runs `nft` on the calling thread (and so in its network namespace), with a deadline.
async fn run(
    action: &'static str,
    what: &str,
    args: &[&str],
    input: &[u8],
    stdout: Stdio,
) -> Result<Vec<u8>, NetError> {
    let failed = |source| NetError::Nft { action, what: what.to_owned(), source };
    let started = Command::new("nft")
        .args(args)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(stdout)
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut child = match started {
        Ok(child) => child,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(NetError::NftMissing),
        Err(e) => return Err(failed(Box::new(e))),
    };
    let stdin = child.stdin.take();
    let work = async {
        // Small enough for the pipe; nft reads all of it before it writes.
        if let Some(mut stdin) = stdin {
            stdin.write_all(input).await?;
        }
        child.wait_with_output().await
    };
    let out = match tokio::time::timeout(DEADLINE, work).await {
        Ok(r) => r.map_err(|e| failed(Box::new(e)))?,
        Err(_) => return Err(NetError::NftTimeout { action, what: what.to_owned(), after: DEADLINE }),
    };
    if out.status.success() {
        return Ok(out.stdout);
    }
    Err(failed(Box::new(NftSaid(String::from_utf8_lossy(&out.stderr).into_owned()))))
}

fn is_not_found(e: &NetError) -> bool {
    matches!(e, NetError::Nft { source, .. } if source.downcast_ref::<NftSaid>().is_some_and(NftSaid::is_not_found))
}

/// Applies commands in one transaction: all of them or none.
pub(crate) async fn apply(
    runs: &Runs,
    action: &'static str,
    what: &str,
    commands: Vec<Value>,
) -> Result<(), NetError> {
    let input = json!({ "nftables": commands }).to_string();
    // Without --echo it writes nothing there.
    let lock = runs.begin().await?;
    run(action, what, &["-j", "-f", "-"], input.as_bytes(), lock.into()).await.map(|_| ())
}

async fn list(what: &str, args: &[&str]) -> Result<Vec<Value>, NetError> {
    let out = run("list", what, args, b"", Stdio::piped()).await?;
    let read = |source: serde_json::Error| NetError::Nft {
        action: "read the list of",
        what: what.to_owned(),
        source: Box::new(source),
    };
    match serde_json::from_slice::<Value>(&out).map_err(read)? {
        Value::Object(mut o) => match o.remove("nftables") {
            Some(Value::Array(all)) => Ok(all),
            _ => Ok(Vec::new()),
        },
        _ => Ok(Vec::new()),
    }
}

/// Every object of every table.
pub(crate) async fn ruleset() -> Result<Vec<Value>, NetError> {
    list("the ruleset", &["-j", "list", "ruleset"]).await
}

/// The chains of every table, without their rules.
pub(crate) async fn chains() -> Result<Vec<Value>, NetError> {
    list("the chains", &["-j", "list", "chains"]).await
}

/// One of our tables, and of others' all those with a chain that forwarded or incoming packets pass, whole.
///
/// Not the whole ruleset: a host may have many networks of ours and firewalls of ten thousand rules elsewhere, and this is
/// read for each machine that starts.
pub(crate) async fn around(family: &str, name: &str) -> Result<Vec<Value>, NetError> {
    let chains = chains().await?;
    let mut tables = BTreeSet::new();
    for chain in chains.iter().filter_map(|o| o.get("chain")) {
        let text = |key: &str| chain.get(key).and_then(Value::as_str).unwrap_or_default();
        let ours = text("family") == family && text("table") == name;
        let asked = matches!(text("hook"), "forward" | "input") && bridge_of_table(text("table")).is_none();
        if ours || asked {
            tables.insert((text("family"), text("table")));
        }
    }
    let mut all = Vec::new();
    for (family, name) in tables {
        // One that has gone meanwhile has nothing to tell.
        all.extend(table(family, name).await?.unwrap_or_default());
    }
    Ok(all)
}

/// The objects of one table; `None` when there is no such table.
pub(crate) async fn table(family: &str, name: &str) -> Result<Option<Vec<Value>>, NetError> {
    match list(&format!("table {name}"), &["-j", "list", "table", family, name]).await {
        Ok(all) => Ok(Some(all)),
        Err(e) if is_not_found(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Deletes a table and sees that it is gone; one that is not there is fine.
pub(crate) async fn delete_table(runs: &Runs, family: &str, name: &str) -> Result<(), NetError> {
    if !may_name(family) || !may_name(name) {
        return Err(NetError::BadName { name: format!("{family} {name}") });
    }
    if table(family, name).await?.is_none() {
        return Ok(());
    }
    let it = json!({ "table": { "family": family, "name": name } });
    // Adding first makes the deletion succeed even if somebody else is faster.
    apply(runs, "delete", &format!("table {name}"), vec![json!({ "add": it }), json!({ "delete": it })])
        .await?;
    match table(family, name).await? {
        None => Ok(()),
        Some(_) => Err(NetError::TableStays { name: name.to_owned() }),
    }
}

/// Deletes the rules of a chain that carry a comment; a chain that is not there is fine.
pub(crate) async fn delete_commented(
    runs: &Runs,
    family: &str,
    table_name: &str,
    chain: &str,
    comment: &str,
) -> Result<(), NetError> {
    if ![family, table_name, chain].into_iter().all(may_name) {
        return Err(NetError::BadName { name: format!("{family} {table_name} {chain}") });
    }
    let Some(all) = table(family, table_name).await? else { return Ok(()) };
    let commands: Vec<Value> = commented(&all, chain, comment)
        .filter_map(|rule| {
            let handle = rule.get("handle")?;
            Some(json!({ "delete": { "rule": {
                "family": family, "table": table_name, "chain": chain, "handle": handle } } }))
        })
        .collect();
    if commands.is_empty() {
        return Ok(());
    }
    match apply(runs, "delete our rules from", &format!("chain {chain} of table {table_name}"), commands)
        .await
    {
        Err(e) if is_not_found(&e) => Ok(()),
        r => r,
    }
}

/// The rules of a chain that carry a comment.
pub(crate) fn commented<'a>(
    objects: &'a [Value],
    chain: &'a str,
    comment: &'a str,
) -> impl Iterator<Item = &'a Value> {
    objects.iter().filter_map(|o| o.get("rule")).filter(move |r| {
        r.get("chain").and_then(Value::as_str) == Some(chain)
            && r.get("comment").and_then(Value::as_str) == Some(comment)
    })
}

/// Whether a name from a journal may stand on nft's command line: nothing that nft would read as more than a name.
fn may_name(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'/'))
}
