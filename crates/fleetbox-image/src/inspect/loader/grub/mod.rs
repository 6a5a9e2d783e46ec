//! grub.cfg: run as far as it takes to know its entries and which of them is the default. Pure.

mod parse;

use std::collections::BTreeMap;

use super::{Entry, Origin};
use parse::{Piece, Statement, Word, parse};

type Vars = BTreeMap<String, String>;

const MAX_ENTRIES: usize = 256;
/// Statements run; a script without loops and calls ends by itself, so this bounds only its size.
const MAX_STEPS: usize = 100_000;

/// The longest command line of a kernel is half of it.
const MAX_WORD: usize = 8192;

/// What a grub.cfg comes to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::inspect) struct GrubCfg {
    /// The default entry first, rescue entries last.
    pub(in crate::inspect) entries: Vec<Entry>,
    /// It takes its entries from `loader/entries`, too.
    pub(in crate::inspect) bls: bool,
    /// Which entry is the default: a number, title or id.
    pub(in crate::inspect) default: Option<String>,
    /// Another configuration that it leads to.
    pub(in crate::inspect) next: Option<String>,
}

/// Runs a grub.cfg with the variables of its environment block.
pub(in crate::inspect) fn run(text: &str, env: &Vars) -> GrubCfg {
    let known = [
        ("grub_platform", "pc"),
        ("feature_menuentry_id", "y"),
        ("feature_default_font_path", "y"),
        ("feature_timeout_style", "y"),
        ("prefix", "/boot/grub"),
    ];
    let mut machine = Machine {
        env,
        vars: known.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        bls: false,
        next: None,
        steps: MAX_STEPS,
        menu: Vec::new(),
        entry: None,
    };
    machine.run(&parse(text));
    let default = machine.vars.get("default").cloned().filter(|d| !d.is_empty());
    let chosen = choose(&machine.menu, default.as_deref().unwrap_or("0")).cloned();
    let mut entries = Vec::new();
    flatten(machine.menu, &mut entries);
    // Stable: in the order of the menu but for these two.
    entries.sort_by_key(|e| (Some(e) != chosen.as_ref(), is_rescue(e)));
    entries.dedup();
    GrubCfg { entries, bls: machine.bls, default, next: machine.next }
}

fn is_rescue(entry: &Entry) -> bool {
    let words = ["single", "recovery", "rescue", "systemd.unit=rescue.target"];
    entry.title.contains("rescue") || entry.args.split_whitespace().any(|w| words.contains(&w))
}

#[derive(Debug)]
struct Item {
    title: String,
    id: String,
    entry: Option<Entry>,
    below: Vec<Item>,
}

/// By number, title or id, with `>` between menus.
fn choose<'a>(menu: &'a [Item], default: &str) -> Option<&'a Entry> {
    let (first, rest) = match default.split_once('>') {
        Some((first, rest)) => (first, Some(rest)),
        None => (default, None),
    };
    let named = menu.iter().find(|i| i.id == first || i.title == first);
    let item = named.or_else(|| menu.get(first.parse::<usize>().ok()?))?;
    match rest {
        Some(rest) => choose(&item.below, rest),
        None => item.entry.as_ref().or_else(|| choose(&item.below, "0")),
    }
}

fn flatten(menu: Vec<Item>, entries: &mut Vec<Entry>) {
    for item in menu {
        entries.extend(item.entry.filter(|_| entries.len() < MAX_ENTRIES));
        flatten(item.below, entries);
    }
}

struct Machine<'a> {
    env: &'a Vars,
    vars: Vars,
    bls: bool,
    next: Option<String>,
    steps: usize,
    menu: Vec<Item>,
    /// The entry whose commands are run.
    entry: Option<Entry>,
}

impl Machine<'_> {
    /// Whether the last command succeeded.
    fn run(&mut self, statements: &[Statement]) -> bool {
        let mut good = true;
        for statement in statements {
            self.steps = self.steps.saturating_sub(1);
            if self.steps == 0 {
                return false;
            }
            good = match statement {
                Statement::Command(words) => self.command(&self.expand(words)),
                Statement::If(branches, otherwise) => {
                    match branches.iter().find(|(condition, _)| self.run(condition)) {
                        Some((_, body)) => self.run(body),
                        None => self.run(otherwise),
                    }
                }
                Statement::Menu { submenu, words, body } => {
                    self.item(*submenu, &self.expand(words), body);
                    true
                }
            };
        }
        good
    }

    fn item(&mut self, submenu: bool, words: &[String], body: &[Statement]) {
        let (mut title, mut id) = (None, String::new());
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--id" => id = words.next().cloned().unwrap_or_default(),
                "--class" | "--users" | "--hotkey" | "--source" => _ = words.next(),
                w if w.starts_with("--") => {}
                w if title.is_none() => title = Some(w.to_owned()),
                _ => {}
            }
        }
        let title = title.unwrap_or_default();
        // What an entry sets is gone with it.
        let vars = self.vars.clone();
        if submenu {
            let above = std::mem::take(&mut self.menu);
            self.run(body);
            let below = std::mem::replace(&mut self.menu, above);
            self.menu.push(Item { title, id, entry: None, below });
        } else {
            let outer = self.entry.replace(Entry {
                title: title.clone(),
                kernel: String::new(),
                initrds: Vec::new(),
                args: String::new(),
                origin: Origin::Grub,
                config: String::new(),
            });
            self.run(body);
            let entry = std::mem::replace(&mut self.entry, outer).filter(|e| !e.kernel.is_empty());
            self.menu.push(Item { title, id, entry, below: Vec::new() });
        }
        self.vars = vars;
    }

    fn expand(&self, words: &[Word]) -> Vec<String> {
        let one = |word: &Word| {
            let mut text = String::new();
            for piece in &word.pieces {
                text.push_str(match piece {
                    Piece::Text(t) => t,
                    Piece::Variable(name) => self.vars.get(name).map_or("", String::as_str),
                });
                // A variable of variables of variables: it ends here.
                if text.len() > MAX_WORD {
                    text = text.chars().take(MAX_WORD).collect();
                    break;
                }
            }
            // A word of nothing but an unset variable is no word.
            (word.quoted || !text.is_empty()).then_some(text)
        };
        words.iter().filter_map(one).collect()
    }

    fn command(&mut self, words: &[String]) -> bool {
        let Some((name, args)) = words.split_first() else { return true };
        match name.as_str() {
            "set" => args.first().is_none_or(|a| self.assign(a)),
            "unset" => {
                args.iter().for_each(|a| _ = self.vars.remove(a));
                true
            }
            "load_env" => {
                self.vars.extend(self.env.clone());
                true
            }
            "blscfg" => {
                self.bls = true;
                true
            }
            "configfile" | "source" | "." | "normal" => {
                if self.entry.is_none() {
                    self.next = args.first().cloned().or(self.next.take());
                }
                true
            }
            "[" | "test" => test(args.strip_suffix(&["]".to_owned()]).unwrap_or(args), self.env),
            "false" => false,
            _ if name.starts_with("linux") => {
                if let Some(entry) = &mut self.entry
                    && let Some((kernel, args)) = args.split_first()
                {
                    entry.kernel = kernel.clone();
                    entry.args = args.join(" ");
                    // Of an `if` whose other branch has loaded one.
                    entry.initrds.clear();
                }
                true
            }
            _ if name.starts_with("initrd") => {
                if let Some(entry) = &mut self.entry {
                    entry.initrds = args.iter().filter(|a| !a.starts_with("--")).take(8).cloned().collect();
                }
                true
            }
            _ if name.contains('=') && args.is_empty() => self.assign(name),
            _ => true,
        }
    }

    fn assign(&mut self, assignment: &str) -> bool {
        if let Some((name, value)) = assignment.split_once('=')
            && self.vars.len() < 1024
        {
            self.vars.insert(name.to_owned(), value.to_owned());
        }
        true
    }
}

/// `[ … ]`, of what grub-mkconfig writes. Of files, only the environment block is known to be there.
fn test(args: &[String], env: &Vars) -> bool {
    if let Some(at) = args.iter().position(|a| a == "-o") {
        return test(&args[..at], env) || test(&args[at + 1..], env);
    }
    if let Some(at) = args.iter().position(|a| a == "-a") {
        return test(&args[..at], env) && test(&args[at + 1..], env);
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let number = |s: &str| s.parse::<i64>().unwrap_or(0);
    match args.as_slice() {
        ["!", rest @ ..] => {
            let rest: Vec<String> = rest.iter().map(|&s| s.to_owned()).collect();
            !test(&rest, env)
        }
        ["-n", s] => !s.is_empty(),
        ["-z", s] => s.is_empty(),
        ["-s" | "-f" | "-e", path] => path.ends_with("grubenv") && !env.is_empty(),
        ["-d", _] => false,
        [a, "=" | "==", b] => a == b,
        [a, "!=", b] => a != b,
        [a, "-eq", b] => number(a) == number(b),
        [a, "-ne", b] => number(a) != number(b),
        [a, "-lt", b] => number(a) < number(b),
        [a, "-gt", b] => number(a) > number(b),
        [a, "-le", b] => number(a) <= number(b),
        [a, "-ge", b] => number(a) >= number(b),
        [s] => !s.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
