//! GRUB's scripts, as a tree of statements. Pure.
//!
//! Grammar: GRUB's manual, "Writing full configuration files directly", as far as grub-mkconfig's output uses it.

/// What a real script never reaches.
const MAX_DEPTH: usize = 32;
const MAX_TOKENS: usize = 200_000;

/// A part of a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    Text(String),
    Variable(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Word {
    pub(super) pieces: Vec<Piece>,
    /// Stays even when it is empty.
    pub(super) quoted: bool,
}

impl Word {
    fn push(&mut self, c: char) {
        match self.pieces.last_mut() {
            Some(Piece::Text(t)) => t.push(c),
            _ => self.pieces.push(Piece::Text(c.to_string())),
        }
    }

    /// The text of a word that has nothing to expand and no quotes: keywords.
    fn keyword(&self) -> Option<&str> {
        match self.pieces.as_slice() {
            [Piece::Text(t)] if !self.quoted => Some(t),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(Word),
    /// A line's end or a semicolon.
    End,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Statement {
    Command(Vec<Word>),
    /// Conditions with what they guard, then what else is done.
    If(Vec<(Vec<Statement>, Vec<Statement>)>, Vec<Statement>),
    /// A menu entry or a submenu.
    Menu {
        submenu: bool,
        words: Vec<Word>,
        body: Vec<Statement>,
    },
}

/// What can be made out of a text; what cannot is passed over.
pub(super) fn parse(text: &str) -> Vec<Statement> {
    let mut parser = Parser { tokens: tokens(text), at: 0 };
    let mut all = Vec::new();
    while parser.at < parser.tokens.len() {
        all.append(&mut parser.statements(&[], 0));
        // A closing word that nothing opened.
        parser.at += 1;
    }
    all
}

fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    let mut word: Option<Word> = None;
    while let Some(c) = chars.next() {
        if tokens.len() >= MAX_TOKENS {
            break;
        }
        match c {
            ' ' | '\t' | '\r' => tokens.extend(word.take().map(Token::Word)),
            '\n' | ';' => {
                tokens.extend(word.take().map(Token::Word));
                tokens.push(Token::End);
            }
            '#' if word.is_none() => while chars.next_if(|&c| c != '\n').is_some() {},
            '\\' => match chars.next() {
                // A line that goes on.
                Some('\n') | None => {}
                Some(c) => word.get_or_insert_default().push(c),
            },
            '\'' => {
                let word = word.get_or_insert_default();
                word.quoted = true;
                while let Some(c) = chars.next_if(|&c| c != '\'') {
                    word.push(c);
                }
                chars.next();
            }
            '"' => {
                let word = word.get_or_insert_default();
                word.quoted = true;
                while let Some(c) = chars.next_if(|&c| c != '"') {
                    match c {
                        '\\' => match chars.next() {
                            Some(c @ ('"' | '\\' | '$')) => word.push(c),
                            Some(c) => {
                                word.push('\\');
                                word.push(c);
                            }
                            None => {}
                        },
                        '$' => word.pieces.push(variable(&mut chars)),
                        c => word.push(c),
                    }
                }
                chars.next();
            }
            '$' => {
                let piece = variable(&mut chars);
                word.get_or_insert_default().pieces.push(piece);
            }
            c => word.get_or_insert_default().push(c),
        }
    }
    tokens.extend(word.map(Token::Word));
    tokens
}

fn variable(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Piece {
    let mut name = String::new();
    if chars.next_if_eq(&'{').is_some() {
        while let Some(c) = chars.next_if(|&c| c != '}' && c != '\n') {
            name.push(c);
        }
        chars.next_if_eq(&'}');
    } else {
        while let Some(c) = chars.next_if(|c| c.is_ascii_alphanumeric() || *c == '_' || *c == '?') {
            name.push(c);
        }
    }
    if name.is_empty() { Piece::Text("$".to_owned()) } else { Piece::Variable(name) }
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    /// Up to one of the closing words, which is left, or the end.
    fn statements(&mut self, closing: &[&str], depth: usize) -> Vec<Statement> {
        let mut all = Vec::new();
        while let Some(token) = self.tokens.get(self.at) {
            let Token::Word(word) = token else {
                self.at += 1;
                continue;
            };
            let keyword = word.keyword().unwrap_or_default().to_owned();
            if closing.contains(&keyword.as_str())
                || matches!(keyword.as_str(), "}" | "fi" | "done" | "then" | "else" | "elif" | "do")
            {
                break;
            }
            if depth >= MAX_DEPTH {
                self.at = self.tokens.len();
                break;
            }
            match keyword.as_str() {
                "if" => {
                    self.at += 1;
                    all.push(self.conditional(depth));
                }
                "menuentry" | "submenu" => {
                    self.at += 1;
                    let words = self.words(true);
                    let body = self.block(depth);
                    all.push(Statement::Menu { submenu: keyword == "submenu", words, body });
                }
                // Functions only ever prepare the screen; loops look for other systems.
                "function" => {
                    self.at += 1;
                    self.words(true);
                    self.block(depth);
                }
                "for" | "while" | "until" => {
                    self.at += 1;
                    self.words(false);
                    self.statements(&["do"], depth + 1);
                    self.expect("do");
                    self.statements(&["done"], depth + 1);
                    self.expect("done");
                }
                "{" => {
                    all.append(&mut self.block(depth));
                }
                _ => {
                    let words = self.words(false);
                    all.push(Statement::Command(words));
                }
            }
        }
        all
    }

    fn conditional(&mut self, depth: usize) -> Statement {
        let mut branches = Vec::new();
        let mut otherwise = Vec::new();
        loop {
            let condition = self.statements(&["then"], depth + 1);
            self.expect("then");
            let body = self.statements(&["elif", "else", "fi"], depth + 1);
            branches.push((condition, body));
            if self.expect("elif") {
                continue;
            }
            if self.expect("else") {
                otherwise = self.statements(&["fi"], depth + 1);
            }
            self.expect("fi");
            return Statement::If(branches, otherwise);
        }
    }

    fn block(&mut self, depth: usize) -> Vec<Statement> {
        while matches!(self.tokens.get(self.at), Some(Token::End)) {
            self.at += 1;
        }
        if !self.expect("{") {
            return Vec::new();
        }
        let body = self.statements(&["}"], depth + 1);
        self.expect("}");
        body
    }

    /// The words up to the end of the command; of a menu entry also up to its block.
    fn words(&mut self, until_block: bool) -> Vec<Word> {
        let mut words = Vec::new();
        while let Some(Token::Word(word)) = self.tokens.get(self.at) {
            if until_block && word.keyword() == Some("{") {
                break;
            }
            words.push(word.clone());
            self.at += 1;
        }
        words
    }

    fn expect(&mut self, keyword: &str) -> bool {
        match self.tokens.get(self.at) {
            Some(Token::Word(w)) if w.keyword() == Some(keyword) => {
                self.at += 1;
                true
            }
            _ => false,
        }
    }
}
