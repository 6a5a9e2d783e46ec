//! Looks into a disk and takes its kernel out: `cargo run --example boot_files -- DISK raw|qcow2 FOLDER`.
#![expect(clippy::print_stdout, reason = "an example's output is its purpose")]

use std::path::PathBuf;
use std::time::Instant;

use fleetbox_image::Images;
use fleetbox_spec::{Arch, DiskFormat};
use fleetbox_store::Store;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(disk), Some(format), Some(out)) = (args.next(), args.next(), args.next()) else {
        return Err("usage: boot_files DISK raw|qcow2 FOLDER".into());
    };
    let format = if format == "raw" { DiskFormat::Raw } else { DiskFormat::Qcow2 };
    let images = Images::new(Store::open_default()?);
    let arch = Arch::host().ok_or("an unknown architecture")?;
    let (disk, out) = (PathBuf::from(disk), PathBuf::from(out));
    for _ in 0..3 {
        let begun = Instant::now();
        let files = images.boot_files_of_disk(&disk, format, &out, arch).await?;
        println!("{:.1} ms: {files:#?}", begun.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(())
}
