//! Words for a shell, and for ssh_config.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// What is sent to the guest's shell for the words after `--`: one word is shell text as it is, several are a
/// program and its arguments, which arrive as they were given.
pub(crate) fn remote_command(words: &[OsString]) -> Option<OsString> {
    match words {
        [] => None,
        [text] => Some(text.clone()),
        words => {
            let quoted: Vec<Vec<u8>> = words.iter().map(|w| shell_word(w)).collect();
            Some(OsString::from_vec(quoted.join(&b' ')))
        }
    }
}

/// One word for a POSIX shell, quoted only where it must be.
fn shell_word(word: &OsStr) -> Vec<u8> {
    let bytes = word.as_bytes();
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"_-./,:+@%^".contains(b);
    if !bytes.is_empty() && bytes.iter().all(plain) {
        return bytes.to_owned();
    }
    let mut quoted = vec![b'\''];
    for &b in bytes {
        match b {
            // Out of the quotes, an escaped quote, and in again.
            b'\'' => quoted.extend_from_slice(b"'\\''"),
            b => quoted.push(b),
        }
    }
    quoted.push(b'\'');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_is_text_several_are_words() {
        let command = |words: &[&str]| {
            let words: Vec<OsString> = words.iter().map(OsString::from).collect();
            remote_command(&words).map(|c| c.into_string().unwrap())
        };
        assert_eq!(command(&[]), None);
        assert_eq!(command(&["echo $HOME | wc -c"]).unwrap(), "echo $HOME | wc -c");
        assert_eq!(command(&["uname", "-a"]).unwrap(), "uname -a");
        assert_eq!(
            command(&["echo", "$HOME", "a b", "", "it's"]).unwrap(),
            r"echo '$HOME' 'a b' '' 'it'\''s'"
        );
    }

    proptest! {
        // A shell is the judge of what a shell makes of it.
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn words_arrive_as_given(words in proptest::collection::vec("[^\0]{0,12}", 2..5)) {
            let mut all = vec![OsString::from("printf"), OsString::from("%s\\0")];
            all.extend(words.iter().map(OsString::from));
            let text = remote_command(&all).unwrap();
            let out = std::process::Command::new("sh").arg("-c").arg(text).output().unwrap();
            let want: String = words.iter().map(|w| format!("{w}\0")).collect();
            prop_assert_eq!(String::from_utf8(out.stdout).unwrap(), want);
        }
    }
}
