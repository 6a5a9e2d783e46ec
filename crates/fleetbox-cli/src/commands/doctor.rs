//! `fleetbox doctor`

use std::io;

use fleetbox::{Host, Mark, ReportLine};

use crate::error::{CliError, Result};
use crate::exit::Exit;
use crate::output;

pub(crate) fn run(json: bool) -> Result {
    let host = Host::capabilities()?;
    let text =
        if json { host.to_json() + "\n" } else { render(&host.lines(), output::colors(&io::stdout())) };
    match output::print(&text) {
        // The verdict stands, read to its end or not.
        Ok(()) | Err(CliError::ReaderGone) => {}
        Err(e) => return Err(e),
    }
    Ok(if host.can_run_machines() { Exit::Ok } else { Exit::Host })
}

fn render(lines: &[ReportLine], color: bool) -> String {
    let mut text = String::new();
    for line in lines {
        let code = match line.mark {
            Mark::Good => "32",
            Mark::Warning => "33",
            Mark::Bad => "31",
            Mark::Plain => "2",
        };
        let symbol = line.mark.symbol();
        let symbol = if color { format!("\x1b[{code}m{symbol}\x1b[0m") } else { symbol.to_owned() };
        text += &format!("{symbol} {}\n", line.text.trim_end().replace('\n', "\n  "));
        for hint in line.hint.iter().flat_map(|h| h.lines()) {
            text += &format!("    {hint}\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_with_marks_and_hints() {
        let line = |mark, text: &str, hint: Option<&str>| ReportLine {
            mark,
            text: text.into(),
            hint: hint.map(Into::into),
        };
        let lines =
            [line(Mark::Good, "root", None), line(Mark::Bad, "no QEMU", Some("install it\nor another"))];
        assert_eq!(render(&lines, false), "✓ root\n✗ no QEMU\n    install it\n    or another\n");
        assert!(render(&lines, true).starts_with("\x1b[32m✓\x1b[0m root\n"));
    }
}
