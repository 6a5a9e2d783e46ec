//! `fleetbox cli-reference`: docs/cli.md, made from the definition that also parses the command line.

use clap::{Arg, Command, CommandFactory as _};

use crate::args::Cli;
use crate::error::Result;
use crate::exit::Exit;
use crate::output;

pub(crate) fn run() -> Result {
    output::print(&reference())?;
    Ok(Exit::Ok)
}

fn reference() -> String {
    let mut cli = Cli::command();
    // Fills in the usage lines' program names.
    cli.build();
    let mut text = String::from("# The fleetbox command\n\n");
    text += "<!-- Made by `fleetbox cli-reference`; `cargo xtask golden --write` makes it anew. -->\n\n";
    text += &paragraphs(&cli);
    text += "\n| Command | What it does |\n|---|---|\n";
    // clap's own `help` says nothing that this page does not.
    let shown = |c: &&Command| !c.is_hide_set() && c.get_name() != "help";
    for command in cli.get_subcommands().filter(shown) {
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        text += &format!("| [`{name}`](#fleetbox-{name}) | {about} |\n", name = command.get_name());
    }
    text += &examples(&cli);
    for command in cli.get_subcommands().filter(shown) {
        text += &section(command, "");
        for below in command.get_subcommands().filter(shown) {
            text += &section(below, command.get_name());
        }
    }
    text += "\n## Exit codes\n\n| Code | Meaning |\n|---|---|\n";
    for exit in Exit::ALL {
        text += &format!("| {} | {} |\n", exit.code(), exit.meaning());
    }
    text += "\n`fleetbox ssh` ends with the exit code of the command it ran, or with ssh's own 255.\n";
    text += "\nAn error is told on stderr: `error:` with what was attempted, `caused by:` for each cause, the last lines of the \
             machine's console where the guest is what failed, and `hint:` where something is known to help.\n";
    text
}

fn section(command: &Command, above: &str) -> String {
    let name = command.get_name();
    let heading = match above {
        "" => format!("## fleetbox {name}"),
        above => format!("### fleetbox {above} {name}"),
    };
    let mut text = format!("\n{heading}\n\n{}", paragraphs(command));
    let usage = command.clone().render_usage().to_string();
    text += &format!("\n```text\n{}\n```\n", usage.trim_start_matches("Usage: ").trim());
    let aliases: Vec<String> = command.get_visible_aliases().map(|a| format!("`{a}`")).collect();
    if !aliases.is_empty() {
        text += &format!("\nAlso: {}\n", aliases.join(", "));
    }
    let arguments: Vec<&Arg> =
        command.get_arguments().filter(|a| !a.is_hide_set() && a.get_id() != "help").collect();
    if !arguments.is_empty() {
        text += "\n| Argument | Meaning |\n|---|---|\n";
        for argument in arguments {
            text += &row(argument);
        }
    }
    text + &examples(command)
}

fn row(argument: &Arg) -> String {
    let values = argument.get_value_names().unwrap_or_default().join(" ");
    let takes_value = argument.get_action().takes_values();
    let spelling = match (argument.get_short(), argument.get_long()) {
        (None, None) => values,
        (short, long) => {
            let names = [short.map(|s| format!("-{s}")), long.map(|l| format!("--{l}"))];
            let names = names.into_iter().flatten().collect::<Vec<_>>().join(", ");
            if takes_value { format!("{names} {values}") } else { names }
        }
    };
    let help = argument.get_long_help().or(argument.get_help()).map(ToString::to_string).unwrap_or_default();
    let possible: Vec<String> = argument
        .get_possible_values()
        .iter()
        .filter(|v| takes_value && !v.is_hide_set())
        .map(|v| format!("`{}`", v.get_name()))
        .collect();
    let possible =
        if possible.is_empty() { String::new() } else { format!(" One of {}.", possible.join(", ")) };
    format!("| `{spelling}` | {}{possible} |\n", angles(&help.replace('\n', " ")).replace('|', "\\|"))
}

fn paragraphs(command: &Command) -> String {
    let about = command.get_long_about().or(command.get_about());
    format!("{}\n", about.map(ToString::to_string).unwrap_or_default())
}

/// What follows the options in the help, whose first line is a heading.
fn examples(command: &Command) -> String {
    let Some(help) = command.get_after_help().map(ToString::to_string) else { return String::new() };
    let (heading, lines) = help.split_once('\n').unwrap_or(("", &help));
    let lines: Vec<&str> = lines.lines().map(|l| l.strip_prefix("  ").unwrap_or(l)).collect();
    format!("\n{heading}\n\n```sh\n{}\n```\n", lines.join("\n"))
        .replace("Environment:\n\n```sh", "Environment:\n\n```text")
}

/// Outside code, Markdown takes `<suite>` for HTML.
fn angles(text: &str) -> String {
    let mut in_code = false;
    let mut out = String::new();
    for c in text.chars() {
        in_code ^= c == '`';
        match c {
            '<' if !in_code => out += "&lt;",
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checked_in_page_is_this_one() {
        let kept = include_str!("../../../../docs/cli.md");
        assert!(kept == reference(), "docs/cli.md is out of date: `cargo xtask golden --write`");
    }

    #[test]
    fn everything_public_is_in_it() {
        let text = reference();
        for command in Cli::command().get_subcommands() {
            let heading = format!("\n## fleetbox {}\n", command.get_name());
            assert_eq!(text.contains(&heading), !command.is_hide_set(), "{heading}");
        }
    }
}
