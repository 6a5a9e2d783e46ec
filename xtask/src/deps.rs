//! Which crate of ours may depend on which: arrows point down only (ARCHITECTURE.md). Dev-dependencies are exempt.

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::workspace::Workspace;

/// What any crate may use.
const FOR_ALL: [&str; 2] = ["fleetbox-spec", "fleetbox-os"];

/// What each crate may use beyond [`FOR_ALL`]. A trailing `*` stands for any ending.
const ARROWS: &[(&str, &[&str])] = &[
    ("fleetbox-cli", &["fleetbox"]),
    ("fleetbox-macros", &[]),
    // The store beside the crates above it: whoever opens a socket or a log takes its path from there.
    ("fleetbox", &["fleetbox-api", "fleetbox-ssh", "fleetbox-holder", "fleetbox-store", "fleetbox-macros"]),
    ("fleetbox-holder", &["fleetbox-api", "fleetbox-orchestrator", "fleetbox-store"]),
    (
        "fleetbox-orchestrator",
        &[
            "fleetbox-vmm*",
            "fleetbox-net",
            "fleetbox-image",
            "fleetbox-seed",
            "fleetbox-payload",
            "fleetbox-ssh",
            "fleetbox-store",
        ],
    ),
    ("fleetbox-api", &[]),
    ("fleetbox-vmm", &[]),
    ("fleetbox-vmm-*", &["fleetbox-vmm"]),
    ("fleetbox-net", &["fleetbox-store"]),
    ("fleetbox-image", &["fleetbox-store"]),
    ("fleetbox-payload", &["fleetbox-store"]),
    ("fleetbox-ssh", &["fleetbox-store"]),
    ("fleetbox-seed", &[]),
    ("fleetbox-store", &[]),
    ("fleetbox-testkit", &[]),
];

/// The bottom: they use nothing of ours, not even each other.
const BOTTOM: [&str; 2] = FOR_ALL;

/// Not part of the product, so free to use what they test.
const EXEMPT: [&str; 2] = ["xtask", "fleetbox-e2e"];

pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let wrong = wrong_arrows(&arrows(&workspace.metadata(&["--no-deps"])?)?);
    if !wrong.is_empty() {
        bail!("dependencies that point the wrong way:\n  {}", wrong.join("\n  "));
    }
    Ok(())
}

/// Who uses whom, within the workspace; dev-dependencies left out.
fn arrows(metadata: &Value) -> Result<Vec<(String, String)>> {
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let mut all = Vec::new();
    for package in packages {
        let from = package["name"].as_str().context("a package without a name")?;
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            // Ours have a path, others a registry.
            let ours = dependency["path"].is_string() && dependency["kind"] != "dev";
            if let Some(to) = dependency["name"].as_str().filter(|_| ours) {
                all.push((from.to_owned(), to.to_owned()));
            }
        }
    }
    Ok(all)
}

fn wrong_arrows(arrows: &[(String, String)]) -> Vec<String> {
    let mut wrong: Vec<String> = arrows
        .iter()
        .filter(|(from, to)| !is_allowed(from, to))
        .map(|(from, to)| format!("{from} -> {to}"))
        .collect();
    wrong.sort();
    wrong
}

fn is_allowed(from: &str, to: &str) -> bool {
    if EXEMPT.contains(&from) {
        return true;
    }
    if BOTTOM.contains(&from) {
        return false;
    }
    if FOR_ALL.contains(&to) {
        return true;
    }
    // The longest pattern says most: `fleetbox-vmm` is not a `fleetbox-vmm-*`.
    ARROWS
        .iter()
        .filter(|(pattern, _)| matches(pattern, from))
        .any(|(_, may)| may.iter().any(|p| matches(p, to)))
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrows_point_down_only() {
        let workspace = Workspace::find().unwrap();
        let arrows = arrows(&workspace.metadata(&["--no-deps"]).unwrap()).unwrap();
        assert!(arrows.len() > 10, "metadata has changed its form: {arrows:?}");
        assert_eq!(wrong_arrows(&arrows), [""; 0]);
    }

    #[test]
    fn wrong_ones_are_told() {
        for (from, to, allowed) in [
            ("fleetbox-cli", "fleetbox", true),
            ("fleetbox-cli", "fleetbox-orchestrator", false),
            ("fleetbox", "fleetbox-orchestrator", false),
            ("fleetbox-orchestrator", "fleetbox-vmm-qemu", true),
            ("fleetbox-orchestrator", "fleetbox-vmm", true),
            ("fleetbox-orchestrator", "fleetbox-holder", false),
            ("fleetbox-vmm-qemu", "fleetbox-vmm", true),
            ("fleetbox-vmm-qemu", "fleetbox-vmm-ch", false),
            ("fleetbox-vmm", "fleetbox-vmm-qemu", false),
            ("fleetbox-net", "fleetbox-store", true),
            ("fleetbox-seed", "fleetbox-store", false),
            ("fleetbox-seed", "fleetbox-spec", true),
            ("fleetbox-store", "fleetbox-os", true),
            ("fleetbox-spec", "fleetbox-os", false),
            ("fleetbox-os", "fleetbox-spec", false),
            ("fleetbox-net", "fleetbox-testkit", false),
            ("a-crate-nobody-thought-of", "fleetbox-store", false),
            ("xtask", "fleetbox-testkit", true),
        ] {
            assert_eq!(is_allowed(from, to), allowed, "{from} -> {to}");
        }
    }

    #[test]
    fn dev_dependencies_are_exempt() {
        let metadata = serde_json::json!({"packages": [{"name": "fleetbox-net", "dependencies": [
            {"name": "fleetbox-testkit", "path": "/x", "kind": "dev"},
            {"name": "fleetbox-ssh", "path": "/x", "kind": null},
            {"name": "libc", "kind": null},
        ]}]});
        assert_eq!(wrong_arrows(&arrows(&metadata).unwrap()), ["fleetbox-net -> fleetbox-ssh"]);
    }
}
