//! The README's first example. Boots a machine, runs two commands in it, deletes it.
#![expect(clippy::print_stdout, reason = "an example shows what it got")]

use fleetbox::Vm;

#[tokio::main(flavor = "current_thread")]
async fn main() -> fleetbox::Result<()> {
    let vm = Vm::builder("first").image("bootstrap:bookworm").ephemeral().start().await?;
    println!("{} runs {}", vm.ip(), vm.ssh("uname -sr").await?);
    let out = vm.exec("systemctl is-system-running --wait").await?;
    println!("{} ({})", out.text(), out.status());
    vm.destroy().await
}
