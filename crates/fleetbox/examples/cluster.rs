//! Three machines on one network that reach each other by name: `cargo run --example cluster`, as root.
#![expect(clippy::print_stdout, reason = "an example shows what it got")]

use fleetbox::{Cluster, Members};

#[tokio::main(flavor = "current_thread")]
async fn main() -> fleetbox::Result<()> {
    let cluster = Cluster::builder("raft").image("bootstrap:bookworm").ephemeral().create().await?;
    let (one, _two) = tokio::try_join!(cluster.add("node-1"), cluster.add("node-2"))?;
    println!("{}", one.ssh("getent hosts node-2 && ping -c 1 node-2").await?);
    // A further member joins the network that is up; the others find it by name at once.
    let three = cluster.add("node-3").await?;
    println!("{}", three.ssh("ping -6 -c 1 node-1").await?);
    cluster.close_with(Members::Destroy).await
}
