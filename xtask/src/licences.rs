//! Licences of everything that is built into fleetbox: permissive ones only.

use anyhow::{Context, Result, bail};

use crate::workspace::Workspace;

/// Licences that ask for no more than their notice. `X WITH Y` is listed as such.
const ALLOWED: [&str; 10] = [
    "MIT",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "0BSD",
    "BSL-1.0",
    // For Unicode's own data tables, which have no other; OSI-approved, and no more than MIT in other words.
    "Unicode-3.0",
];

pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let wrong = wrong_licences(&workspace.metadata(&["--all-features"])?)?;
    if !wrong.is_empty() {
        bail!("licences that are not on the list of xtask/src/licences.rs:\n  {}", wrong.join("\n  "));
    }
    Ok(())
}

fn wrong_licences(metadata: &serde_json::Value) -> Result<Vec<String>> {
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let mut wrong = Vec::new();
    for package in packages {
        let name = package["name"].as_str().context("a package without a name")?;
        match package["license"].as_str() {
            None => wrong.push(format!("{name}: none given")),
            Some(text) => match is_allowed(text) {
                Ok(true) => {}
                Ok(false) => wrong.push(format!("{name}: {text}")),
                Err(e) => wrong.push(format!("{name}: {e:#}")),
            },
        }
    }
    wrong.sort();
    Ok(wrong)
}

/// Whether an SPDX expression can be fulfilled with allowed licences: for `OR` one side is enough, `AND` needs both.
fn is_allowed(expression: &str) -> Result<bool> {
    // Old manifests write `MIT/Apache-2.0`, where `/` is `OR`.
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut parser = Parser { tokens: spaced.split_whitespace().collect(), at: 0 };
    let allowed = parser.any_of().with_context(|| format!("unreadable licence {expression:?}"))?;
    if parser.at != parser.tokens.len() {
        bail!("unreadable licence {expression:?}");
    }
    Ok(allowed)
}

struct Parser<'a> {
    tokens: Vec<&'a str>,
    at: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.tokens.get(self.at).copied()
    }

    fn take(&mut self, token: &str) -> bool {
        let found = self.peek() == Some(token);
        self.at += usize::from(found);
        found
    }

    // AND binds closer than OR (SPDX specification, annex D).
    fn any_of(&mut self) -> Result<bool> {
        let mut allowed = self.all_of()?;
        while self.take("OR") {
            allowed |= self.all_of()?;
        }
        Ok(allowed)
    }

    fn all_of(&mut self) -> Result<bool> {
        let mut allowed = self.one()?;
        while self.take("AND") {
            allowed &= self.one()?;
        }
        Ok(allowed)
    }

    fn one(&mut self) -> Result<bool> {
        if self.take("(") {
            let allowed = self.any_of()?;
            if !self.take(")") {
                bail!("a parenthesis is not closed");
            }
            return Ok(allowed);
        }
        let mut licence = self.peek().context("it ends too early")?.to_owned();
        if matches!(licence.as_str(), ")" | "AND" | "OR" | "WITH") {
            bail!("{licence:?} is in the wrong place");
        }
        self.at += 1;
        if self.take("WITH") {
            let exception = self.peek().context("it ends too early")?;
            self.at += 1;
            licence = format!("{licence} WITH {exception}");
        }
        Ok(ALLOWED.contains(&licence.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions() {
        for (text, allowed) in [
            ("MIT", true),
            ("MIT OR Apache-2.0", true),
            ("MIT/Apache-2.0", true),
            ("GPL-3.0-only", false),
            ("MIT OR Apache-2.0 OR LGPL-2.1-or-later", true),
            ("LGPL-2.1-or-later AND MIT", false),
            ("Apache-2.0 AND ISC", true),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
            ("MIT OR GPL-2.0-only AND BSD-3-Clause", true),
            ("(MIT OR GPL-2.0-only) AND GPL-2.0-only", false),
            ("Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT", true),
            ("GPL-2.0-only WITH Classpath-exception-2.0", false),
        ] {
            assert_eq!(is_allowed(text).unwrap(), allowed, "{text}");
        }
        for text in ["", "MIT OR", "(MIT", "MIT)", "OR MIT", "MIT Apache-2.0"] {
            assert!(is_allowed(text).is_err(), "{text}");
        }
    }

    #[test]
    fn everything_built_in_is_permissive() {
        let workspace = Workspace::find().unwrap();
        let metadata = workspace.metadata(&["--all-features"]).unwrap();
        assert!(metadata["packages"].as_array().unwrap().len() > 50);
        assert_eq!(wrong_licences(&metadata).unwrap(), [""; 0]);
    }
}
