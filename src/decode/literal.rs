//! The few Python literals that exporters write into model metadata: a flat dict, list or tuple of
//! strings and bare words. JSON objects and arrays of the same depth are read by the same rules.
//!
//! Model files come from strangers: whatever is not understood is `None`, work and memory are linear in
//! the text's length, and there is no recursion.

use std::iter::Peekable;
use std::str::Chars;

/// A flat collection; strings unquoted and unescaped, bare words (`640`, `True`) as they stand.
#[derive(Debug, PartialEq)]
pub(super) enum Literal {
    Dict(Vec<(String, String)>),
    List(Vec<String>),
}

impl Literal {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut reader = Reader { chars: text.chars().peekable() };
        let literal = match reader.next_token()? {
            '{' => Self::Dict(reader.items('}', Reader::entry)?),
            '[' => Self::List(reader.items(']', Reader::scalar)?),
            '(' => Self::List(reader.items(')', Reader::scalar)?),
            _ => return None,
        };
        // Anything behind the closing bracket means that this was something else.
        reader.next_token().is_none().then_some(literal)
    }
}

struct Reader<'a> {
    chars: Peekable<Chars<'a>>,
}

impl<'a> Reader<'a> {
    fn skip_space(&mut self) {
        while self.chars.next_if(|c| c.is_whitespace()).is_some() {}
    }

    /// The next character that is not white space.
    fn next_token(&mut self) -> Option<char> {
        self.skip_space();
        self.chars.next()
    }

    /// Items up to `close`, separated by commas; a comma before `close` is legal, as in Python.
    fn items<T>(&mut self, close: char, item: fn(&mut Reader<'a>) -> Option<T>) -> Option<Vec<T>> {
        let mut items = Vec::new();
        loop {
            self.skip_space();
            if self.chars.next_if_eq(&close).is_some() {
                return Some(items);
            }
            items.push(item(self)?);
            match self.next_token()? {
                ',' => {}
                c if c == close => return Some(items),
                _ => return None,
            }
        }
    }

    fn entry(&mut self) -> Option<(String, String)> {
        let key = self.scalar()?;
        (self.next_token()? == ':').then_some(())?;
        Some((key, self.scalar()?))
    }

    fn scalar(&mut self) -> Option<String> {
        self.skip_space();
        match self.chars.next_if(|&c| c == '\'' || c == '"') {
            Some(quote) => self.string(quote),
            None => self.word(),
        }
    }

    /// A number or a keyword.
    fn word(&mut self) -> Option<String> {
        let mut word = String::new();
        while let Some(c) = self.chars.next_if(|c| c.is_ascii_alphanumeric() || "+-._".contains(*c)) {
            word.push(c);
        }
        (!word.is_empty()).then_some(word)
    }

    fn string(&mut self, quote: char) -> Option<String> {
        let mut string = String::new();
        loop {
            match self.chars.next()? {
                c if c == quote => return Some(string),
                '\\' => self.escape(&mut string)?,
                c => string.push(c),
            }
        }
    }

    /// What follows a backslash. Unknown escapes keep their backslash, as in Python.
    fn escape(&mut self, string: &mut String) -> Option<()> {
        let plain = match self.chars.next()? {
            c @ ('\\' | '\'' | '"' | '/') => c,
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'b' => '\u{8}',
            'f' => '\u{c}',
            'x' => self.code_point(2)?,
            'u' => self.code_point(4)?,
            'U' => self.code_point(8)?,
            c => {
                string.push('\\');
                c
            }
        };
        string.push(plain);
        Some(())
    }

    /// A character given by `digits` hexadecimal digits. JSON writes characters beyond U+FFFF as two
    /// surrogates.
    fn code_point(&mut self, digits: usize) -> Option<char> {
        let code = self.hex(digits)?;
        if !(0xD800..0xDC00).contains(&code) {
            return char::from_u32(code);
        }
        (self.chars.next()? == '\\' && self.chars.next()? == 'u').then_some(())?;
        let low = self.hex(4)?;
        (0xDC00..0xE000).contains(&low).then_some(())?;
        char::from_u32(0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00))
    }

    fn hex(&mut self, digits: usize) -> Option<u32> {
        let mut value = 0;
        for _ in 0..digits {
            value = value << 4 | self.chars.next()?.to_digit(16)?;
        }
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn list(items: &[&str]) -> Option<Literal> {
        Some(Literal::List(items.iter().map(|item| item.to_string()).collect()))
    }

    fn dict(entries: &[(&str, &str)]) -> Option<Literal> {
        let entries = entries.iter().map(|(key, value)| (key.to_string(), value.to_string()));
        Some(Literal::Dict(entries.collect()))
    }

    #[test]
    fn python_and_json_collections() {
        let table = [
            ("{}", dict(&[])),
            ("{0: 'person', 1: 'it\\'s', 2: \"x\"}", dict(&[("0", "person"), ("1", "it's"), ("2", "x")])),
            ("{0: \"it's\", 1: 'say \"hi\"'}", dict(&[("0", "it's"), ("1", "say \"hi\"")])),
            (" {\"0\" : \"a, b: {c}\" , } ", dict(&[("0", "a, b: {c}")])),
            ("['a', 'b']", list(&["a", "b"])),
            ("(640, 480)", list(&["640", "480"])),
            ("(640,)", list(&["640"])),
            ("[1.5, -2, True]", list(&["1.5", "-2", "True"])),
            (r"['\\', '\x41\u00e9\U0001F600', '\ud83d\ude00', '\d']", list(&["\\", "Aé😀", "😀", "\\d"])),
            ("['ä', '自転車', '']", list(&["ä", "自転車", ""])),
        ];
        for (text, expected) in table {
            assert_eq!(Literal::parse(text), expected, "{text}");
        }
    }

    #[test]
    fn anything_else_is_nothing() {
        let table = [
            "",
            "   ",
            "garbage",
            "640",
            "{",
            "[",
            "{0}",
            "{0:}",
            "{0: 'a'",
            "{0: 'a}",
            "{0: 'a'} x",
            "{0: 'a' 1: 'b'}",
            "{0: {1: 'a'}}",
            "[[1]]",
            "[,]",
            "['a'",
            "['a\\",
            "['\\ud83d']",
            "['\\ud83d\\u0041']",
            "['\\udc00']",
            "['\\xg0']",
            "['\\U00110000']",
            "{0: 'a']",
        ];
        for text in table {
            assert_eq!(Literal::parse(text), None, "{text}");
        }
        assert_eq!(Literal::parse(&"[".repeat(1_000_000)), None);
    }

    proptest! {
        #[test]
        fn any_text_is_harmless(text in "[\\[\\](){}'\",:\\\\ux0-9a ]{0,40}|.{0,40}") {
            let _ = Literal::parse(&text);
        }

        /// With serde_json as the writer.
        #[test]
        fn a_written_list_reads_back(items in prop::collection::vec("[a-z '\\\\\"äß車]{0,8}", 0..6)) {
            let text = serde_json::to_string(&items).unwrap();
            prop_assert_eq!(Literal::parse(&text), Some(Literal::List(items)));
        }
    }
}
