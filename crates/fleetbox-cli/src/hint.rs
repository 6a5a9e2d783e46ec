//! What may help.

use fleetbox::{Error, ErrorKind};

use crate::error::CliError;

/// What may help after an error: in terms of this command where it has a way, else what the library says.
pub(crate) async fn hint(error: &CliError) -> Option<String> {
    match error {
        CliError::Fleetbox(e) => match &**e {
            Error::NotFound { name } => {
                // A second error would only hide the first.
                let names = fleetbox::list().await.map(|l| l.machines).unwrap_or_default();
                let names: Vec<&str> = names.iter().map(|m| m.name.as_str()).collect();
                Some(unknown(name, &names))
            }
            Error::Running { name, .. } => {
                Some(format!("`fleetbox down {name}` stops it; `fleetbox rm -f {name}` removes it all the same"))
            }
            Error::Image(_) => match e.kind() {
                ErrorKind::NotFound => Some("`fleetbox image ls` shows the images that are there".into()),
                ErrorKind::Conflict => Some("`fleetbox rm NAME` deletes a machine, its disk too".into()),
                ErrorKind::InvalidInput => Some("give more digits of the digest".into()),
                ErrorKind::Held => Some("try again when that is done".into()),
                ErrorKind::NotRoot => Some("run it as root: `sudo -E fleetbox …`".into()),
                _ => None,
            },
            Error::NotRoot { .. } => Some("run it as root: `sudo -E fleetbox …`".into()),
            e => match e.kind() {
                ErrorKind::BootTimeout | ErrorKind::GuestFailed => Some(
                    "`fleetbox logs NAME` shows the whole console; `--timeout 10m` gives a slow boot more time".into(),
                ),
                _ => e.hint(),
            },
        },
        CliError::NotRunning { name, .. } => Some(format!("`fleetbox up {name}` starts it")),
        CliError::InterruptedUnfinished { .. } => {
            Some("it may still be going; `fleetbox prune` clears away what an ended process left".into())
        }
        CliError::Program { program, .. } => Some(format!("install {program}, or see that it is in PATH")),
        _ => None,
    }
}

fn unknown(name: &str, all: &[&str]) -> String {
    let mut near: Vec<(usize, &str)> =
        all.iter().map(|n| (distance(name, n), *n)).filter(|(d, n)| is_near(*d, name, n)).collect();
    near.sort_unstable();
    match near.iter().take(3).map(|(_, n)| *n).collect::<Vec<_>>().join(", ") {
        names if names.is_empty() => "`fleetbox ls` shows all machines".into(),
        names => format!("did you mean {names}? `fleetbox ls` shows all machines"),
    }
}

/// A third of the letters may be wrong, or the one may be the beginning of the other.
fn is_near(distance: usize, asked: &str, there: &str) -> bool {
    let longest = asked.len().max(there.len());
    distance <= (longest / 3).clamp(1, 3)
        || (asked.len() >= 2 && there.starts_with(asked))
        || (there.len() >= 2 && asked.starts_with(there))
}

/// Levenshtein's distance: how many letters to change, add or take away.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, cb) in row.iter_mut().skip(1).zip(&b) {
            let replaced = diagonal + usize::from(ca != *cb);
            diagonal = *cell;
            left = replaced.min(*cell + 1).min(left + 1);
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, d) in
            [("", "", 0), ("web", "web", 0), ("web", "wbe", 2), ("kitten", "sitting", 3), ("", "abc", 3)]
        {
            assert_eq!((distance(a, b), distance(b, a)), (d, d), "{a} {b}");
        }
    }

    #[test]
    fn near_names_only() {
        assert!(unknown("wob", &["web", "database"]).starts_with("did you mean web?"));
        assert!(unknown("node", &["web", "node-2", "node-1"]).starts_with("did you mean node-1, node-2?"));
        assert_eq!(unknown("x", &["database"]), "`fleetbox ls` shows all machines");
        assert_eq!(unknown("web", &[]), "`fleetbox ls` shows all machines");
    }
}
