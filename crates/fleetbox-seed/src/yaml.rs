//! JSON that a YAML reader reads alike.
//!
//! cloud-init and netplan read YAML, of which JSON is a subset but for some characters: PyYAML refuses a whole
//! document over one character outside its printable set (DEL, C1 controls, U+FFFE: `yaml/reader.py`,
//! `NON_PRINTABLE`), folds U+0085, U+2028 and U+2029 inside quotes as line breaks, and reads a JSON surrogate pair
//! (`\ud83d\ude00`) as two lone surrogates. So everything outside ASCII leaves as `\uXXXX`, except characters beyond
//! the basic plane, which leave as themselves.

use serde::Serialize;

use crate::SeedError;

/// `value` as indented JSON and a final newline, in a form that YAML readers read alike.
pub(crate) fn to_string(file: &'static str, value: &impl Serialize) -> Result<String, SeedError> {
    let json = serde_json::to_string_pretty(value).map_err(|source| SeedError::Json { file, source })?;
    let mut out = String::with_capacity(json.len() + 1);
    for c in json.chars() {
        // Outside ASCII, characters only ever stand inside JSON strings, where an escape may replace them.
        match u16::try_from(u32::from(c)) {
            Ok(code) if code >= 0x7f => out.push_str(&format!("\\u{code:04x}")),
            _ => out.push(c),
        }
    }
    out.push('\n');
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn awkward_characters_are_escaped() {
        let text = to_string("t", &"a\u{7f}\u{85}\u{2028}\u{feff}\u{fffe}é😀\n\u{1}").unwrap();
        assert_eq!(text, "\"a\\u007f\\u0085\\u2028\\ufeff\\ufffe\\u00e9😀\\n\\u0001\"\n");
    }
}
