//! Finds, builds or imports an image and prints what it is: `cargo run --example resolve -- bootstrap:bookworm`.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "an example's output is its purpose")]

use std::time::Instant;

use fleetbox_image::Images;
use fleetbox_store::Store;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let images = Images::new(Store::open_default()?);
    for path in images.sweep()? {
        eprintln!("removed {}, left by a builder that died", path.display());
    }
    let reference = match std::env::args().nth(1) {
        Some(arg) => arg.parse()?,
        None => images.default_image().await?.image,
    };
    let begun = Instant::now();
    let image = images
        .resolve(&reference, &|p| {
            let count = p.progress.map(|p| {
                let total = p.total.map_or("?".to_owned(), |t| t.to_string());
                format!(" {}/{total} {}", p.done, p.unit)
            });
            eprintln!(
                "{:7.2} {}: {}{}",
                begun.elapsed().as_secs_f32(),
                p.stage,
                p.detail,
                count.unwrap_or_default()
            );
        })
        .await?;
    println!("{image:#?}");
    Ok(())
}
