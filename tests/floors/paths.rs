//! Reads Rust just well enough: what is comment or text, and which paths the rest names.

/// The text with comments, strings and characters made blank; lines stay where they are.
pub fn code(text: &str) -> String {
    let text: Vec<char> = text.chars().collect();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        let end = match text[at] {
            '/' if text.get(at + 1) == Some(&'/') => end_of(&text, at, "\n").saturating_sub(1),
            '/' if text.get(at + 1) == Some(&'*') => end_of(&text, at + 2, "*/"),
            '"' => end_of_string(&text, at + 1),
            'r' if !code.ends_with(is_word) && raw_hashes(&text, at + 1).is_some() => {
                let hashes = raw_hashes(&text, at + 1).unwrap_or_default();
                end_of(&text, at + hashes + 2, &format!("\"{}", "#".repeat(hashes)))
            }
            '\'' if text.get(at + 1) == Some(&'\\') => end_of(&text, at + 3, "'"),
            '\'' if text.get(at + 2) == Some(&'\'') => at + 3,
            _ => {
                code.push(text[at]);
                at += 1;
                continue;
            }
        };
        code.extend(text[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
        at = end;
    }
    code
}

/// The number of hashes when a raw string goes on here.
fn raw_hashes(text: &[char], at: usize) -> Option<usize> {
    let hashes = text[at..].iter().take_while(|c| **c == '#').count();
    (text.get(at + hashes) == Some(&'"')).then_some(hashes)
}

fn end_of(text: &[char], from: usize, mark: &str) -> usize {
    let mark: Vec<char> = mark.chars().collect();
    let found = (from..text.len()).find(|at| text[*at..].starts_with(&mark));
    found.map_or(text.len(), |at| at + mark.len())
}

fn end_of_string(text: &[char], mut at: usize) -> usize {
    while at < text.len() && text[at] != '"' {
        at += if text[at] == '\\' { 2 } else { 1 };
    }
    text.len().min(at + 1)
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Every path of two parts or more, and every single name that is imported, with its line. Groups are written out:
/// `a::{b, c::d}` is `a::b` and `a::c::d`.
pub fn paths(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let (mut line, mut rest) = (1, code);
    while let Some(start) = rest.find(is_word) {
        line += rest[..start].matches('\n').count();
        rest = &rest[start..];
        let before = code[..code.len() - rest.len()].trim_end();
        let is_import = before.ends_with("use") || before.ends_with("use ::");
        let mut leaves = Vec::new();
        let after = tree(rest, "", &mut leaves);
        // What follows a generic argument, `<T>::name`, belongs to no path that could be known.
        if !before.ends_with(">::") {
            found.extend(leaves.into_iter().filter(|leaf| is_import || leaf.contains("::")).map(|leaf| (line, leaf)));
        }
        line += rest[..rest.len() - after.len()].matches('\n').count();
        rest = after;
    }
    found
}

/// Reads one path, `a::b`, or one with a group at its end, and gives what comes after.
fn tree<'a>(text: &'a str, prefix: &str, leaves: &mut Vec<String>) -> &'a str {
    let name = text.len() - text.trim_start_matches(is_word).len();
    let path = format!("{prefix}{}", &text[..name]);
    let rest = &text[name..];
    let Some(next) = rest.trim_start().strip_prefix("::").map(str::trim_start) else {
        leaves.push(path);
        return rest;
    };
    if next.starts_with(is_word) {
        return tree(next, &format!("{path}::"), leaves);
    }
    let Some(mut group) = next.strip_prefix('{') else {
        leaves.push(path);
        return next;
    };
    loop {
        group = group.trim_start_matches(|c: char| c == ',' || c.is_whitespace());
        if group.starts_with(is_word) {
            group = tree(group, &format!("{path}::"), leaves);
            // A leaf may be renamed.
            if let Some(renamed) = group.trim_start().strip_prefix("as ") {
                group = renamed.trim_start().trim_start_matches(is_word);
            }
        } else {
            return group.get(1..).unwrap_or_default();
        }
    }
}

mod the_reader_itself {
    use super::*;

    fn all_paths(text: &str) -> Vec<String> {
        paths(&code(text)).into_iter().map(|(_, path)| path).collect()
    }

    #[test]
    fn finds_paths_in_imports_and_in_the_middle_of_code() {
        assert_eq!(all_paths("use a::b;"), ["a::b"]);
        assert_eq!(all_paths("pub use a;"), ["a"]);
        assert_eq!(
            all_paths("use a::{\n  b,\n  c::{d, e as f},\n};\nx(g::h());"),
            ["a::b", "a::c::d", "a::c::e", "g::h"]
        );
        assert_eq!(all_paths("fn f(x: &a::B) -> Vec<c::D<e::F>> { x.y() }"), ["a::B", "c::D", "e::F"]);
        assert_eq!(all_paths("Vec::<a::B>::new()"), ["a::B"]);
        assert_eq!(all_paths("let x = ::a::b;"), ["a::b"]);
    }

    #[test]
    fn reads_no_comments_and_no_texts() {
        let text = "// a::b\n/* c::d */ let s = \"e::f \\\" g::h\"; let r = r#\"i::j \" k\"#; let c = '\"'; m::n::<'x'>(); /// o::p";
        assert_eq!(all_paths(text), ["m::n"]);
        assert_eq!(paths(&code("\"\n\n\"; a::b")), [(3, "a::b".to_owned())]);
        assert_eq!(all_paths("fn f<'a>(x: &'a str) { b::c(x) }"), ["b::c"]);
    }
}
