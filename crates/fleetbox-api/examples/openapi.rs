//! Prints the OpenAPI document: `cargo xtask golden --write` keeps it as docs/openapi.json.

use std::io::Write;

fn main() -> std::io::Result<()> {
    let text = fleetbox_api::openapi_json().map_err(std::io::Error::other)?;
    std::io::stdout().write_all(text.as_bytes())
}
