//! A Rust source as the rules read it: code, comments and literals told apart, test code known.
//!
//! Not a parser. It knows how comments, strings and items nest, which is enough to find words,
//! paths and the extent of an item; what it cannot tell apart it leaves as code.

/// One source file.
pub struct Source {
    /// From the root of the repository, with `/` between.
    pub path: String,
    text: String,
    /// The text with all but code blanked, test code included.
    code: String,
    /// The text with all but comments blanked.
    comments: String,
    /// Byte ranges of items that are compiled for tests only.
    test_items: Vec<(usize, usize)>,
    /// Whether all of the file is.
    pub is_test: bool,
}

/// A word or a single punctuation character of the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token<'s> {
    pub text: &'s str,
    pub at: usize,
}

impl Source {
    pub fn new(path: &str, text: &str) -> Source {
        let (code, comments) = separate(text);
        let test_items = test_items(&code);
        Source {
            path: path.to_owned(),
            text: text.to_owned(),
            code,
            comments,
            test_items,
            is_test: false,
        }
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    /// Words and punctuation of the code, test code included.
    pub fn tokens(&self) -> Vec<Token<'_>> {
        tokens(&self.code)
    }

    /// Words and punctuation of what is compiled into the product.
    pub fn product_tokens(&self) -> Vec<Token<'_>> {
        let tokens = self.tokens().into_iter();
        tokens.filter(|token| !self.is_test_at(token.at)).collect()
    }

    pub fn is_test_at(&self, at: usize) -> bool {
        self.is_test
            || self
                .test_items
                .iter()
                .any(|(from, to)| (*from..*to).contains(&at))
    }

    /// Modules declared for tests only, whose files are test code as a whole.
    pub fn test_modules(&self) -> Vec<&str> {
        let declared = self.test_items.iter().filter_map(|(from, to)| {
            let tokens = tokens(&self.code[*from..*to]);
            let [.., word, name, end] = &tokens[..] else {
                return None;
            };
            (word.text == "mod" && end.text == ";").then_some(name.text)
        });
        declared.collect()
    }

    /// Lines that hold code of the product.
    pub fn code_lines(&self) -> usize {
        let mut at = 0;
        let mut count = 0;
        for line in self.code.split('\n') {
            count += usize::from(!line.trim().is_empty() && !self.is_test_at(at));
            at += line.len() + 1;
        }
        count
    }

    /// The numbers, from 1, and the texts of lines in comments.
    pub fn comment_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.comments.split('\n').enumerate();
        lines.map(|(index, line)| (index + 1, line))
    }

    /// The number, from 1, of the line that holds this place.
    pub fn line_number(&self, at: usize) -> usize {
        self.text[..at].matches('\n').count() + 1
    }

    pub fn line(&self, number: usize) -> &str {
        self.text
            .split('\n')
            .nth(number - 1)
            .unwrap_or_default()
            .trim()
    }

    /// Whether the line is a comment, or an attribute, and nothing else.
    pub fn is_comment(&self, number: usize) -> bool {
        let line = self.line(number);
        line.starts_with("//") || line.starts_with("#[")
    }
}

/// Blanks code out of one copy and comments and literals out of the other; places stay the same.
fn separate(text: &str) -> (String, String) {
    let bytes = text.as_bytes();
    let blank = |byte: &u8| if *byte == b'\n' { b'\n' } else { b' ' };
    let mut code: Vec<u8> = bytes.iter().map(blank).collect();
    let mut comments = code.clone();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let comment = rest.starts_with(b"//") || rest.starts_with(b"/*");
        let len = if comment {
            comment_len(rest)
        } else {
            literal_len(bytes, at)
        };
        match len {
            0 => {
                code[at] = bytes[at];
                at += 1;
                continue;
            }
            _ if comment => comments[at..at + len].copy_from_slice(&rest[..len]),
            // A literal leaves its quotes, so that what stands around it does not meet.
            _ => (code[at], code[at + len - 1]) = (b'"', b'"'),
        }
        at += len;
    }
    let utf8 = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (utf8(&code), utf8(&comments))
}

fn comment_len(rest: &[u8]) -> usize {
    if rest.starts_with(b"//") {
        return rest
            .iter()
            .position(|byte| *byte == b'\n')
            .unwrap_or(rest.len());
    }
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match &rest[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// The length of the string or character literal that starts here; 0 if none does.
fn literal_len(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    let in_word = at > 0 && is_word(bytes[at - 1]);
    let prefix = match rest {
        _ if in_word => 0,
        [b'b' | b'c', b'r', b'"' | b'#', ..] => 2,
        [b'b' | b'c' | b'r', b'"', ..] | [b'b', b'\'', ..] | [b'r', b'#', ..] => 1,
        _ => 0,
    };
    let raw = prefix > 0 && rest[prefix - 1] == b'r';
    let body = &rest[prefix..];
    match body.first() {
        Some(b'"' | b'#') if raw => {
            let hashes = body.iter().take_while(|byte| **byte == b'#').count();
            if body.get(hashes) != Some(&b'"') {
                return 0; // a raw identifier
            }
            let end = [b"\"".as_slice(), &b"#".repeat(hashes)].concat();
            let inner = &body[hashes + 1..];
            let len = inner.windows(end.len()).position(|window| window == end);
            prefix + hashes + 1 + len.map_or(inner.len(), |len| len + end.len())
        }
        Some(b'"') => prefix + escaped_len(body, b'"'),
        // A character has its closing quote within the next few octets, a lifetime has none.
        Some(b'\'') => match body {
            [_, b'\\', ..] => prefix + escaped_len(body, b'\''),
            [_, first, ..] => {
                let len = 1 + utf8_len(*first);
                let closed = body.get(len) == Some(&b'\'');
                if closed { prefix + len + 1 } else { 0 }
            }
            _ => 0,
        },
        _ => 0,
    }
}

fn escaped_len(body: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < body.len() {
        match body[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    body.len()
}

fn utf8_len(first: u8) -> usize {
    match first {
        0..=0xbf => 1,
        0xc0..=0xdf => 2,
        0xe0..=0xef => 3,
        _ => 4,
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

fn tokens(code: &str) -> Vec<Token<'_>> {
    let bytes = code.as_bytes();
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let word = bytes[at..]
            .iter()
            .take_while(|byte| is_word(**byte))
            .count();
        let len = word.max(1);
        if !bytes[at].is_ascii_whitespace() {
            let text = &code[at..at + len];
            tokens.push(Token { text, at });
        }
        at += len;
    }
    tokens
}

/// The extents of items under a `#[cfg(…test…)]`, attribute included.
fn test_items(code: &str) -> Vec<(usize, usize)> {
    let tokens = tokens(code);
    let mut items = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let Some(attribute) = attribute_len(&tokens[at..]) else {
            at += 1;
            continue;
        };
        let words: Vec<&str> = tokens[at..at + attribute].iter().map(|t| t.text).collect();
        let for_tests = words[2] == "cfg" && words.contains(&"test") && !words.contains(&"not");
        if !for_tests {
            at += attribute;
            continue;
        }
        let end = at + attribute + item_len(&tokens[at + attribute..]);
        let to = tokens.get(end).map_or(code.len(), |token| token.at);
        items.push((tokens[at].at, to));
        at = end;
    }
    items
}

/// How many tokens the outer attribute takes that starts here.
fn attribute_len(tokens: &[Token<'_>]) -> Option<usize> {
    let [hash, open, ..] = tokens else {
        return None;
    };
    if hash.text != "#" || open.text != "[" {
        return None;
    }
    let mut depth = 0;
    for (index, token) in tokens.iter().enumerate().skip(1) {
        depth += nesting(token.text);
        if depth == 0 {
            return Some(index + 1);
        }
    }
    None
}

/// How many tokens an item takes: to its closing brace, or to its semicolon.
fn item_len(tokens: &[Token<'_>]) -> usize {
    let mut depth = 0;
    for (index, token) in tokens.iter().enumerate() {
        depth += nesting(token.text);
        if depth == 0 && matches!(token.text, ";" | "}") {
            return index + 1;
        }
    }
    tokens.len()
}

fn nesting(token: &str) -> i32 {
    match token {
        "(" | "[" | "{" => 1,
        ")" | "]" | "}" => -1,
        _ => 0,
    }
}
