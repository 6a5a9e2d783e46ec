//! `fleetbox prune`

use crate::error::Result;
use crate::exit::Exit;
use crate::output;

pub(crate) async fn run() -> Result {
    let pruned = fleetbox::prune().await?;
    let mut text = String::new();
    for (what, items) in [
        ("cleared", &pruned.undone),
        ("left alone, as it is of another namespace", &pruned.foreign),
        ("could not be cleared", &pruned.failed),
    ] {
        for item in items {
            text += &format!("{what}: {item}\n");
        }
    }
    if text.is_empty() {
        output::note("there was nothing to clear away");
    }
    output::print(&text)?;
    Ok(if pruned.failed.is_empty() { Exit::Ok } else { Exit::Network })
}
