//! A proposal as a commented catalog.

use std::fmt::Write as _;

use crate::model::catalog::{Load, LogTable, Membership, Model, Ungrouped};
use crate::source::proposal::{LeftOut, Proposal, ProposedMembership, ProposedModel};

/// Where comments are broken.
const WIDTH: usize = 120;

const LEGEND: &str = "\
# name       the class on the wire (`__class`)
# table      a table; schema-qualified when it is not in `public`
# id         the column that identifies a row
# org        the column that holds the tenant
# groups     who sees a row: kind = column, scalar or array. Left out: everyone in the org
# ungrouped  who sees a row whose group columns are null or empty: \"nobody\" (default) or \"org\"
# from       a model whose row has the org and the groups this one lacks, and the column that leads to it
# load       \"instant\" and \"lazy\" are in every full bootstrap; \"partial\" is sent by model, group or batch; \"explicit\"
#            is sent by batch only and not kept in snapshots
# keys       the fields a batch may ask by, named as they stand on the wire. An array is asked by one of its elements
# exclude    columns that never leave the database
# rename     column = \"name on the wire\", where camelCase of the column is not wanted
# filter     rows that fail it do not exist for clients; over this row's own columns
";

/// The whole file.
pub fn catalog(proposal: &Proposal) -> String {
    let mut text = String::new();
    comment(
        &mut text,
        "",
        "A first catalog, proposed by `headstart init` from the tables it found. Every guess is said where it was made.",
    );
    comment(
        &mut text,
        "",
        "`Decide:` marks what only you can know. Where the tables hint at a narrower audience, that is taken; what nothing hints at, the whole org sees.",
    );
    text.push_str("#\n");
    text.push_str(LEGEND);
    text.push_str("#\n");
    comment(&mut text, "", &format!("The tenant: {}. Why: {}.", proposal.tenant, proposal.why.join("; ")));
    proposal.decide.iter().for_each(|doubt| comment(&mut text, "Decide: ", doubt));
    for proposed in &proposal.models {
        text.push('\n');
        model(&mut text, proposed);
    }
    if !proposal.memberships.is_empty() {
        text.push('\n');
        comment(
            &mut text,
            "",
            "Everyone holds org:… and user:…; other groups come from here when the token lists no groups.",
        );
        proposal.memberships.iter().for_each(|proposed| membership(&mut text, proposed));
    }
    if let Some(table) = &proposal.log {
        text.push('\n');
        log(&mut text, table);
    }
    if !proposal.left_out.is_empty() {
        text.push('\n');
        comment(&mut text, "", "Left out, and what would mend it:");
        proposal.left_out.iter().for_each(|left| left_out(&mut text, left));
    }
    text
}

fn model(text: &mut String, proposed: &ProposedModel) {
    let ProposedModel { model, why, decide } = proposed;
    why.iter().for_each(|line| comment(text, "", line));
    decide.iter().for_each(|line| comment(text, "Decide: ", line));
    let mut entries: Vec<(&str, String)> =
        vec![("name", string(&model.name)), ("table", string(&model.table.to_string())), ("id", string(&model.id))];
    entries.extend(model.org.iter().map(|org| ("org", string(org))));
    if !model.groups.is_empty() {
        entries.push(("groups", inline(&model.groups)));
    }
    if model.ungrouped == Ungrouped::Org {
        entries.push(("ungrouped", string("org")));
    }
    if let Some(from) = &model.from {
        entries.push(("from", format!("{{ model = {}, by = {} }}", string(&from.model), string(&from.by))));
    }
    entries.push(("load", string(load(model))));
    for (key, list) in [("keys", &model.keys), ("exclude", &model.exclude)] {
        if !list.is_empty() {
            let items: Vec<String> = list.iter().map(|item| string(item)).collect();
            entries.push((key, format!("[{}]", items.join(", "))));
        }
    }
    if !model.rename.is_empty() {
        entries.push(("rename", inline(&model.rename)));
    }
    entries.extend(model.filter.iter().map(|filter| ("filter", string(filter))));
    text.push_str("[[models]]\n");
    aligned(text, "", &entries);
}

fn load(model: &Model) -> &'static str {
    match model.load {
        Load::Instant => "instant",
        Load::Lazy => "lazy",
        Load::Partial => "partial",
        Load::Explicit => "explicit",
    }
}

fn membership(text: &mut String, proposed: &ProposedMembership) {
    let Membership { kind, table, org, user, group } = &proposed.membership;
    let entries = [("kind", kind), ("table", &table.to_string()), ("org", org), ("user", user), ("group", group)]
        .map(|(key, value)| (key, string(value)));
    let prefix = match &proposed.obstacle {
        None => "",
        Some(obstacle) => {
            comment(text, "Decide: ", obstacle);
            "# "
        }
    };
    let _ = writeln!(text, "{prefix}[[access.memberships]]");
    aligned(text, prefix, &entries);
}

fn log(text: &mut String, log: &LogTable) {
    comment(text, "", "The usual place of the change log is taken, or is not there.");
    text.push_str("[log]\n");
    let full = |schema: &str, name: &str| string(&format!("{schema}.{name}"));
    let entries =
        [("table", full(&log.table.schema, &log.table.name)), ("floor", full(&log.floor.schema, &log.floor.name))];
    aligned(text, "", &entries);
}

fn left_out(text: &mut String, left: &LeftOut) {
    let mend = if left.mend.is_empty() { String::new() } else { format!(" To mend it: {}.", left.mend) };
    comment(text, "- ", &format!("{}: {}.{mend}", left.table, left.why));
}

fn aligned(text: &mut String, prefix: &str, entries: &[(&str, String)]) {
    let width = entries.iter().map(|(key, _)| key.len()).max().unwrap_or_default();
    for (key, value) in entries {
        let _ = writeln!(text, "{prefix}{key:width$} = {value}");
    }
}

/// Comment lines, broken between words. Text from the database can't end the comment.
fn comment(text: &mut String, mark: &str, words: &str) {
    let mut line = format!("# {mark}");
    let indent = format!("# {}", " ".repeat(mark.len()));
    let mut fresh = true;
    for word in words.split_whitespace().map(printable) {
        if !fresh && line.chars().count() + 1 + word.chars().count() > WIDTH {
            let _ = writeln!(text, "{}", line.trim_end());
            line.clone_from(&indent);
            fresh = true;
        }
        if !fresh {
            line.push(' ');
        }
        line.push_str(&word);
        fresh = false;
    }
    let _ = writeln!(text, "{}", line.trim_end());
}

/// TOML allows no control characters in comments.
fn printable(word: &str) -> String {
    word.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect()
}

/// On one line, whatever it holds: keys and inline tables take no other.
fn string(text: &str) -> String {
    let control = text.chars().any(char::is_control);
    if !control && !text.contains(['"', '\\']) {
        return format!("\"{text}\"");
    }
    if !control && !text.contains('\'') {
        return format!("'{text}'");
    }
    let mut quoted = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            letter if letter.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", u32::from(letter));
            }
            letter => quoted.push(letter),
        }
    }
    quoted.push('"');
    quoted
}

fn inline<'a>(pairs: impl IntoIterator<Item = (&'a String, &'a String)>) -> String {
    let key = |key: &str| {
        let bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        if !key.is_empty() && key.bytes().all(bare) { key.to_owned() } else { string(key) }
    };
    let pairs: Vec<String> =
        pairs.into_iter().map(|(name, value)| format!("{} = {}", key(name), string(value))).collect();
    format!("{{ {} }}", pairs.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_survives_the_file() {
        for name in [
            "plain",
            "with \"quotes\"",
            "back\\slash",
            "line\nbreak",
            "größe",
            "a'b",
            "a'\"\\b",
            "''' \"\"\" \u{7f}",
            "",
        ] {
            let text = format!("x = {}\ny = {}", string(name), inline([(&name.to_owned(), &name.to_owned())]));
            let read: toml::Table = text.parse().unwrap_or_else(|error| panic!("{error} in {text}"));
            assert_eq!(read["x"].as_str(), Some(name));
            assert_eq!(read["y"][name].as_str(), Some(name));
        }
    }

    #[test]
    fn comments_are_broken_and_stay_comments() {
        let mut text = String::new();
        comment(&mut text, "- ", &format!("a\nb\u{1}c {}", "word ".repeat(60)));
        assert!(text.lines().count() > 2 && text.starts_with("# - a b?c word"), "{text}");
        assert!(text.lines().all(|line| line.starts_with("# ") && line.chars().count() <= WIDTH), "{text}");
        assert!(text.parse::<toml::Table>().unwrap().is_empty());
    }
}
