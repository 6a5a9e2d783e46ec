//! What no compiler looks at: how long files grow, and what must not be named in them.

use std::fs;
use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::workspace::{Workspace, output};

/// A file with more lines wants splitting by what its parts are, or a reason below.
const MOST_LINES: usize = 600;

/// Longer files, each with its reason.
const LONG_FILES: &[(&str, &str)] = &[];

/// Names that bind the project to the place where it was written: paths of one machine, and hosts of package
/// registries, which a user may have mirrored. Split, so that this file does not hold them itself.
const PLACES: [&str; 9] = [
    concat!("/wo", "rk/"),
    concat!("crates", ".io"),
    concat!("py", "pi.org"),
    concat!("pythonho", "sted.org"),
    concat!("npm", "js."),
    concat!("deb.", "debian.org"),
    concat!("ftp.", "debian.org"),
    concat!("security.", "debian.org"),
    concat!("archive.", "ubuntu.com"),
];

/// Written by cargo, which names the registry on every line.
const NOT_OURS: [&str; 1] = ["Cargo.lock"];

pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let wrong = untidy(workspace)?;
    if !wrong.is_empty() {
        bail!("untidy:\n  {}", wrong.join("\n  "));
    }
    Ok(())
}

fn untidy(workspace: &Workspace) -> Result<Vec<String>> {
    let files = files(workspace)?;
    let mut wrong = Vec::new();
    for file in &files {
        let name = file.to_string_lossy();
        let path = workspace.root().join(file);
        // Deleted but not committed yet, or a link to somewhere else.
        if !path.symlink_metadata().is_ok_and(|m| m.is_file()) {
            continue;
        }
        // What is not text (an image, say) holds no lines.
        if let Ok(text) = fs::read_to_string(&path) {
            wrong.extend(complaints(&name, &text));
        }
    }
    for (name, _) in LONG_FILES {
        if !files.iter().any(|f| f.as_os_str() == *name) {
            wrong.push(format!("{name}: excepted in xtask/src/tidy.rs, but not there"));
        }
    }
    wrong.sort();
    Ok(wrong)
}

/// Files that are in the repository, or would be with the next `git add`.
fn files(workspace: &Workspace) -> Result<Vec<PathBuf>> {
    let args = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let text = String::from_utf8(output(workspace.command("git").args(args))?.stdout)?;
    Ok(text.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from).collect())
}

fn complaints(name: &str, text: &str) -> Vec<String> {
    if NOT_OURS.contains(&name) {
        return Vec::new();
    }
    let mut all = Vec::new();
    let lines = text.lines().count();
    let excepted = LONG_FILES.iter().any(|(file, _)| *file == name);
    if name.ends_with(".rs") && lines > MOST_LINES && !excepted {
        all.push(format!("{name}: {lines} lines; split it by what its parts are (most: {MOST_LINES})"));
    }
    for (number, line) in (1..).zip(text.lines()) {
        if let Some(place) = PLACES.iter().find(|p| names(line, p)) {
            all.push(format!("{name}:{number}: names {place:?}"));
        }
    }
    all
}

/// Whether a line holds a place. A path counts from its root only: `$DIR/x/` is not `/x/`.
fn names(line: &str, place: &str) -> bool {
    let goes_on = |c: char| c.is_alphanumeric() || matches!(c, '_' | '}' | '.' | '-' | '*');
    line.match_indices(place).any(|(at, _)| !place.starts_with('/') || !line[..at].ends_with(goes_on))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_is_tidy() {
        let workspace = Workspace::find().unwrap();
        // Without git (an unpacked archive) there is no list of files to look at.
        if !workspace.root().join(".git").exists() {
            fleetbox_testkit::skip!("this is no git checkout");
        }
        assert_eq!(untidy(&workspace).unwrap(), [""; 0]);
    }

    #[test]
    fn length_and_places() {
        let long = "x\n".repeat(MOST_LINES + 1);
        assert_eq!(complaints("a.rs", &long).len(), 1);
        assert_eq!(complaints("a.json", &long), [""; 0]);
        assert_eq!(complaints("a.rs", &long[2..]), [""; 0]);
        for place in PLACES {
            let text = format!("fine\nsee {place}x\n");
            assert_eq!(complaints("docs/a.md", &text), [format!("docs/a.md:2: names {place:?}")]);
            assert_eq!(complaints("Cargo.lock", &text), [""; 0]);
        }
        assert_eq!(complaints("a.sh", &format!("mount $DIR{}root\n", PLACES[0])), [""; 0]);
        assert_eq!(complaints("a.sh", &format!("cd '{}root'\n", PLACES[0])).len(), 1);
    }
}
