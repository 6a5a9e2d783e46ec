//! The command line.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

const USAGE: &str = "\
fleetbox-bench boot|cluster|image --cli PROGRAM --work FOLDER [--pairs N] [--image IMAGE] [--json] [--markdown]

  boot            one machine against the usual recipe by hand
  cluster         three machines at once against three times one; a network without machines
  image           digest, qcow2 and unpacking against the programs for it; disks from an image by its size
  --cli PROGRAM   the fleetbox command whose `ls` is timed
  --work FOLDER   where the recipe's disks go; on the same file system as FLEETBOX_HOME
  --pairs N       measurements of each side, alternating; 3 by default
  --image IMAGE   what all machines boot; bootstrap:bookworm by default
  --json          JSON on stdout
  --markdown      the block for docs/bench.md on stdout; with --json on stderr";

/// How the results are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Text,
    Markdown,
    Json,
    JsonAndMarkdown,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    Boot,
    Cluster,
    Image,
}

/// What is asked for.
#[derive(Debug)]
pub(crate) struct Args {
    pub(crate) what: What,
    pub(crate) cli: PathBuf,
    pub(crate) work: PathBuf,
    pub(crate) pairs: usize,
    pub(crate) image: String,
    pub(crate) form: Form,
}

impl Args {
    pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Result<Self> {
        let what = match args.next().as_deref() {
            Some("boot") => What::Boot,
            Some("cluster") => What::Cluster,
            Some("image") => What::Image,
            _ => bail!("boot, cluster or image comes first\n\n{USAGE}"),
        };
        let (mut cli, mut work, mut pairs, mut image) = (None, None, 3, "bootstrap:bookworm".to_owned());
        let (mut json, mut markdown) = (false, false);
        while let Some(arg) = args.next() {
            let mut value = || args.next().with_context(|| format!("{arg} needs a value\n\n{USAGE}"));
            match arg.as_str() {
                "--cli" => cli = Some(PathBuf::from(value()?)),
                "--work" => work = Some(PathBuf::from(value()?)),
                "--pairs" => pairs = value()?.parse().context("--pairs takes a number")?,
                "--image" => image = value()?,
                "--json" => json = true,
                "--markdown" => markdown = true,
                _ => bail!("unexpected argument {arg:?}\n\n{USAGE}"),
            }
        }
        if pairs == 0 {
            bail!("--pairs takes 1 or more");
        }
        let form = match (json, markdown) {
            (false, false) => Form::Text,
            (false, true) => Form::Markdown,
            (true, false) => Form::Json,
            (true, true) => Form::JsonAndMarkdown,
        };
        let cli = cli.with_context(|| format!("--cli is missing\n\n{USAGE}"))?;
        let work = work.with_context(|| format!("--work is missing\n\n{USAGE}"))?;
        Ok(Self { what, cli, work, pairs, image, form })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args> {
        Args::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn lines() {
        let args = parse("boot --cli a --work b --pairs 5 --json").unwrap();
        assert_eq!((args.what, args.pairs, args.form), (What::Boot, 5, Form::Json));
        let args = parse("cluster --cli a --work b").unwrap();
        assert_eq!((args.what, args.form), (What::Cluster, Form::Text));
        assert_eq!(parse("image --cli a --work b").unwrap().what, What::Image);
        for bad in ["", "--cli a", "--cli a --work", "--cli a --work b --pairs 0", "--cli a --work b x"] {
            assert!(parse(bad).is_err(), "{bad}");
            assert!(parse(&format!("boot {bad}")).is_err(), "{bad}");
        }
    }
}
