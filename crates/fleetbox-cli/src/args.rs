//! The command line.

mod image;

use std::ffi::OsString;
use std::time::Duration;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use fleetbox::FirmwareChoice;

use crate::{duration, size};

pub(crate) use image::{Image, ImageCommand, ImageInspect, ImageLs, ImageRm};

/// Real Linux machines as test fixtures.
///
/// Boots stock Linux images as virtual machines: a real kernel, a real systemd, an IP address of its own for each, reached
/// over SSH.
#[derive(Debug, Parser)]
#[command(
    name = "fleetbox",
    version,
    arg_required_else_help = true,
    after_help = "\
Environment:
  FLEETBOX_HOME  where everything is kept; ~/.fleetbox by default
  FLEETBOX_LOG   what holders log, such as debug; their logs are in FLEETBOX_HOME/logs
  NO_COLOR       no colours, when set"
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start machines, making those first that do not exist.
    ///
    /// Returns when they can be logged in to, and prints their names and addresses. They then run on until `down` or `rm`.
    /// One that exists is booted from its disk as it is; one that runs is left alone.
    ///
    /// Several are started side by side on one network, where they reach each other by name. When one of them fails, those
    /// that were made for it are removed, and those that were stopped are stopped again.
    ///
    /// Ctrl-C while it starts cancels the start and clears away what it had made; a second Ctrl-C leaves at once.
    #[command(
        visible_alias = "start",
        after_help = "\
Examples:
  fleetbox up web
  fleetbox up web --image bootstrap:bookworm --cpus 4 --memory 2G --disk 20G
  fleetbox up web -n 3                     # web-1, web-2 and web-3
  fleetbox up node-1 --cluster raft --wait --timeout 10m"
    )]
    Up(Up),

    /// List all machines.
    ///
    /// A machine whose record is damaged is told of on stderr, and does not hide the others; the exit code is 8 then.
    #[command(
        visible_alias = "list",
        after_help = "\
Examples:
  fleetbox ls
  fleetbox ls --json | jq -r '.[] | select(.state == \"running\") | .ip'
  fleetbox ls -q | xargs -r fleetbox rm -f"
    )]
    Ls(Ls),

    /// Log in to a machine, or run a command in it, with the system's ssh.
    ///
    /// The machine's host key is verified; nothing of your own ssh configuration is used. A single word after `--` is text
    /// for the guest's shell; several are a program and its arguments, which arrive as they were given. Standard input is
    /// passed on. The user is `fleetbox`, who has passwordless sudo.
    ///
    /// The exit code is the command's. 255 is ssh's own: it could not connect, or the connection broke. An error before ssh
    /// is run has one of the codes of `fleetbox` itself.
    #[command(
        visible_alias = "shell",
        after_help = "\
Examples:
  fleetbox ssh web
  fleetbox ssh web -- 'journalctl -b | grep -c error'
  tar c . | fleetbox ssh web -- tar x -C /tmp"
    )]
    Ssh(Ssh),

    /// Print ssh_config blocks for one machine or for all.
    ///
    /// With `Include` they let ssh, scp, rsync, Ansible and editors reach machines by name.
    #[command(after_help = "\
Examples:
  fleetbox ssh-config > ~/.ssh/fleetbox    # then, in ~/.ssh/config: Include fleetbox
  fleetbox ssh-config web > web.conf && scp -F web.conf file web:")]
    SshConfig(OneOrAll),

    /// Show a machine's serial console.
    #[command(after_help = "\
Examples:
  fleetbox logs web
  fleetbox logs web -f")]
    Logs(Logs),

    /// Shut machines or whole clusters down; their disks are kept.
    ///
    /// The guest gets the power button first, then surer means. Several machines are shut down side by side. A name that no
    /// machine has stands for all machines of the cluster of that name, whose network is then released.
    #[command(visible_aliases = ["stop", "halt"], after_help = "\
Examples:
  fleetbox down web db
  fleetbox down web --now")]
    Down(Down),

    /// Delete machines or whole clusters, their disks too.
    ///
    /// A name that no machine has stands for all machines of the cluster of that name.
    #[command(visible_aliases = ["remove", "destroy", "delete"], after_help = "\
Examples:
  fleetbox rm web
  fleetbox rm -f web db")]
    Rm(Rm),

    /// Halt a machine's processors. Its clock stands still meanwhile.
    #[command(after_help = "Example:\n  fleetbox pause web")]
    Pause(One),

    /// Let a paused machine run on.
    #[command(after_help = "Example:\n  fleetbox resume web")]
    Resume(One),

    /// Cut a machine's power and boot it again, as a reset button does.
    ///
    /// Returns when it can be logged in to again.
    #[command(after_help = "Example:\n  fleetbox reset web")]
    Reset(One),

    /// List, get, inspect and remove images.
    ///
    /// Without a command, lists them.
    #[command(visible_alias = "images", after_help = "Example:\n  fleetbox image ls")]
    Image(Image),

    /// Clear away what ended processes left on this host.
    ///
    /// Links, rules and half-made files whose owner is dead. What a living process owns is never touched, and no machine is
    /// deleted. Every start of a machine does it, too.
    #[command(after_help = "Example:\n  fleetbox prune")]
    Prune,

    /// Tell what this host can do, and what it lacks.
    ///
    /// Exits with 0 when machines can be run here, else with 6.
    #[command(after_help = "Examples:\n  fleetbox doctor\n  fleetbox doctor --json | jq .kvm")]
    Doctor(Json),

    /// Print the version.
    #[command(after_help = "Example:\n  fleetbox version --json")]
    Version(Json),

    /// Print a completion script for a shell.
    #[command(after_help = "\
Examples:
  fleetbox completion bash > /etc/bash_completion.d/fleetbox
  fleetbox completion zsh > ~/.zfunc/_fleetbox")]
    Completion(Completion),

    /// Print the reference of all commands, which is docs/cli.md.
    #[command(hide = true)]
    CliReference,
}

/// Arguments of `up`.
#[derive(Debug, Args)]
pub(crate) struct Up {
    /// The machines' names and hostnames: 1 to 63 of a-z, 0-9 and '-'.
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,

    /// Start so many machines: NAME-1, NAME-2 and so on.
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u32).range(1..=253))]
    pub(crate) count: Option<u32>,

    /// What to make a new machine from: a name such as `debian-12` or `ubuntu-24.04` (`fleetbox image ls --available`) or
    /// an `https://` address, with `#sha256=…` or without, is downloaded once; `bootstrap:<suite>` builds a Debian image on
    /// this host, with more in it as `'bootstrap:<suite>?packages=a,b'`; a path with a '/' is a disk image's file.
    #[arg(long, short)]
    pub(crate) image: Option<String>,

    /// Virtual CPUs; 2 by default. On a machine that exists it applies at this boot.
    #[arg(long, short, value_name = "N")]
    pub(crate) cpus: Option<u32>,

    /// Memory, such as 2G or 512M; a number alone is GiB; 1G by default. On a machine that exists it applies at this boot.
    #[arg(long, short, value_name = "SIZE", value_parser = size::memory_mib)]
    pub(crate) memory: Option<u64>,

    /// Size of the disk, such as 20G, rounded up to whole GiB; 10G by default, or the image's own size if that is more.
    /// A disk can grow and never shrinks.
    #[arg(long, short, value_name = "SIZE", value_parser = size::disk_gib)]
    pub(crate) disk: Option<u64>,

    /// The cluster whose network they join; by default the one they are in, and for new ones the first one's name less a
    /// trailing `-<digits>`.
    #[arg(long, value_name = "NAME")]
    pub(crate) cluster: Option<String>,

    /// Wait until cloud-init has finished, too.
    #[arg(long, short)]
    pub(crate) wait: bool,

    /// How long the boot may take, such as 90s or 5m; by default 90s, ten times as long under emulation.
    #[arg(long, short, value_name = "DURATION", value_parser = duration::parse)]
    pub(crate) timeout: Option<Duration>,

    /// What brings the kernel up: `direct` is without firmware; `auto`, the default, is that where a kernel was found in the
    /// image, and else the firmware that its disk is made for. On a machine that exists it applies at this boot.
    #[arg(long, value_name = "KIND", value_parser = firmware())]
    pub(crate) firmware: Option<FirmwareChoice>,
}

/// The ways to boot, as the library has them.
fn firmware() -> impl TypedValueParser<Value = FirmwareChoice> {
    let words = FirmwareChoice::ALL.map(|c| PossibleValue::new(c.as_str()));
    PossibleValuesParser::new(words).try_map(|word| word.parse())
}

/// Arguments of `ls`.
#[derive(Debug, Args)]
pub(crate) struct Ls {
    /// Print an array of JSON objects with name, cluster, state, ip, cpus, memory_mib, disk_gib, image, backend, accel,
    /// holder_pid, vmm_pid, created_at and boot (what the last boot was by); null where there is none.
    #[arg(long, conflicts_with = "quiet")]
    pub(crate) json: bool,

    /// Print names only, one a line.
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

/// Arguments of `ssh`.
#[derive(Debug, Args)]
pub(crate) struct Ssh {
    /// The machine.
    pub(crate) name: String,

    /// The command; without one, a login shell.
    #[arg(trailing_var_arg = true, value_name = "CMD")]
    pub(crate) command: Vec<OsString>,
}

/// A machine's name, or none for all.
#[derive(Debug, Args)]
pub(crate) struct OneOrAll {
    /// The machine; without one, all.
    pub(crate) name: Option<String>,
}

/// Arguments of `logs`.
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// The machine.
    pub(crate) name: String,

    /// Go on with what is written from now on, until Ctrl-C or until the machine is removed.
    #[arg(long, short)]
    pub(crate) follow: bool,
}

/// Arguments of `down`.
#[derive(Debug, Args)]
pub(crate) struct Down {
    /// The machines, or clusters.
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,

    /// Kill it instead of shutting it down. What the guest had not written to its disk is lost to it.
    #[arg(long)]
    pub(crate) now: bool,
}

/// Arguments of `rm`.
#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// The machines, or clusters.
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,

    /// Also those that run; and it is no error when there is none of that name.
    #[arg(long, short)]
    pub(crate) force: bool,
}

/// A machine's name.
#[derive(Debug, Args)]
pub(crate) struct One {
    /// The machine.
    pub(crate) name: String,
}

/// JSON or not.
#[derive(Debug, Args)]
pub(crate) struct Json {
    /// Print JSON. Fields may be added in later versions.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `completion`.
#[derive(Debug, Args)]
pub(crate) struct Completion {
    /// The shell.
    pub(crate) shell: clap_complete::Shell,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn aliases_and_words_after_the_dashes() {
        for alias in ["start", "list", "shell", "stop", "halt", "remove", "destroy", "delete", "images"] {
            assert!(Cli::command().find_subcommand(alias).is_some(), "{alias}");
        }
        for line in
            [&["fleetbox", "ssh", "web", "--", "ls", "-l"][..], &["fleetbox", "shell", "web", "ls", "-l"]]
        {
            let Command::Ssh(ssh) = Cli::try_parse_from(line).unwrap().command else { panic!("not ssh") };
            assert_eq!((ssh.name.as_str(), ssh.command), ("web", vec!["ls".into(), "-l".into()]));
        }
    }

    #[test]
    fn every_command_has_an_example() {
        let check = |prefix: &str, command: &clap::Command| {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let name = format!("{prefix}{}", command.get_name());
            assert!(
                help.contains(&format!("  fleetbox {name}")) || help.contains(&format!("fleetbox {name} ")),
                "{name}"
            );
        };
        for command in Cli::command().get_subcommands().filter(|c| !c.is_hide_set()) {
            check("", command);
            command.get_subcommands().for_each(|c| check(&format!("{} ", command.get_name()), c));
        }
    }
}
