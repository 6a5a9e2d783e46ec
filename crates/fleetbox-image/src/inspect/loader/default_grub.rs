//! /etc/default/grub, for images whose grub.cfg is not written yet. Pure.

use std::collections::BTreeMap;

/// The kernel arguments that grub-mkconfig would write from these files, read one after another.
pub(in crate::inspect) fn arguments(texts: &[String]) -> String {
    let mut vars = BTreeMap::new();
    for line in texts.iter().flat_map(|t| t.lines()).map(str::trim) {
        let line = line.strip_prefix("export ").unwrap_or(line);
        let Some((name, value)) = line.split_once('=') else { continue };
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            continue;
        }
        let value = value_of(value, &vars);
        vars.insert(name.to_owned(), value);
    }
    let get = |name: &str| vars.get(name).map_or("", String::as_str);
    format!("{} {}", get("GRUB_CMDLINE_LINUX"), get("GRUB_CMDLINE_LINUX_DEFAULT")).trim().to_owned()
}

/// A word of a shell: quotes, backslashes and variables set before; it ends at a blank outside of quotes.
fn value_of(raw: &str, vars: &BTreeMap<String, String>) -> String {
    const MAX: usize = 4096;
    let (mut out, mut quote) = (String::new(), None);
    let mut chars = raw.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, quote) {
            _ if out.len() > MAX => break,
            ('\'' | '"', None) => quote = Some(c),
            (c, Some(q)) if c == q => quote = None,
            ('\\', None | Some('"')) => out.extend(chars.next()),
            ('$', None | Some('"')) => {
                let braced = chars.next_if_eq(&'{').is_some();
                let mut name = String::new();
                while let Some(c) = chars.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
                    name.push(c);
                }
                if braced {
                    chars.next_if_eq(&'}');
                }
                out.push_str(vars.get(&name).map_or("", String::as_str));
            }
            (c, None) if c.is_whitespace() => break,
            (c, _) => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn of_debian_and_its_additions() {
        let debian = "# comment\nGRUB_DEFAULT=0\nGRUB_DISTRIBUTOR=`lsb_release -i -s 2> /dev/null || echo Debian`\n\
                      GRUB_CMDLINE_LINUX_DEFAULT=\"quiet\"\nGRUB_CMDLINE_LINUX=\"console=tty0 net.ifnames=0\" # c\n";
        let more = "GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX consoleblank=${none}0\"\n";
        assert_eq!(
            arguments(&[debian.into(), more.into()]),
            "console=tty0 net.ifnames=0 consoleblank=0 quiet"
        );
        assert_eq!(arguments(&["GRUB_CMDLINE_LINUX='a $b'".into()]), "a $b");
        assert_eq!(arguments(&[]), "");
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(A=|\\$A|\\$\\{A|\"|'|\\\\|\\PC|\n| ){0,60}") {
            let _ = arguments(&[text]);
        }
    }
}
