//! The reference page of the configuration file, made from the tables the reader uses.

use crate::{
    config::{
        keys,
        shape::{Field, Presence, Shape, Table},
    },
    duration,
};

/// The page, in Markdown.
pub fn markdown() -> String {
    let mut page = String::from(
        "# Configuration file\n\n\
         This page is made from the code that reads the file; `sluice config-reference` prints it, \
         `sluice config-schema` prints the same as a JSON schema.\n\n\
         The file is YAML 1.2: one document, no tags, no merge keys; aliases repeat whole values.\n\
         Unknown keys are refused.\n\
         Durations are numbers with their units (`h`, `m`, `s`, `ms`), such as `1m30s`, as in the Gateway API.\n\
         Text that looks like a number has to be in quotes.\n\
         Relative paths start at the folder of the file.\n\n\
         `sluice check FILE` prints everything that is wrong, as `FILE:LINE:COLUMN: key: what is wrong; remedy`.\n\
         A running agent refuses a file with any fault and goes on with what it has.\n",
    );
    let mut tables: Vec<(&Table, String)> = vec![(&keys::ROOT, String::new())];
    let mut done = 0;
    while let Some((table, path)) = tables.get(done).map(|(table, path)| (*table, path.clone())) {
        done += 1;
        section(&mut page, table, &path);
        for field in table.fields {
            if let Some((inner, suffix)) = inner(&field.shape) {
                let dot = if path.is_empty() { "" } else { "." };
                tables.insert(done, (inner, format!("{path}{dot}{}{suffix}", field.key)));
            }
        }
        // Inserting at one index turns the order round; what belongs to this table comes next, in its order.
        let n_inner = table.fields.iter().filter(|field| inner(&field.shape).is_some()).count();
        if let Some(added) = tables.get_mut(done..done + n_inner) {
            added.reverse();
        }
    }
    page
}

fn section(page: &mut String, table: &Table, path: &str) {
    let title = if path.is_empty() { "The file".to_owned() } else { format!("`{path}`") };
    line(page, &format!("\n## {title}\n\n{}", table.doc));
    if !table.one_of.is_empty() {
        line(page, &format!("\nExactly one of `{}` is written.", table.one_of.join("`, `")));
    }
    if table.fields.is_empty() {
        return;
    }
    line(page, "\n| key | value | without it | meaning |\n| --- | --- | --- | --- |");
    for field in table.fields {
        line(page, &row(field));
    }
}

fn row(field: &Field) -> String {
    let absence = match field.presence {
        Presence::Required(_) => "**required**".to_owned(),
        Presence::Default(default) => format!("`{default}`"),
        Presence::Absent(meaning) => meaning.to_owned(),
    };
    let row = format!("| `{}` | {} | {absence} | {} |", field.key, value(&field.shape), field.doc);
    row
}

fn value(shape: &Shape) -> String {
    match shape {
        Shape::Table(table) => format!("mapping ({})", table.name),
        Shape::List(list) => format!("list of {} to {}: {}", list.min, list.max, value(&list.item)),
        Shape::Text(text) => format!("{}, such as `{}`", text.what, text.example),
        Shape::Integer { min, max } => format!("{min} to {max}"),
        Shape::Word(words) => format!("`{}`", words.join("`, `")),
        Shape::Duration { min, max } => {
            format!("duration, `{}` to `{}`", duration::write(*min), duration::write(*max))
        }
    }
}

fn inner(shape: &Shape) -> Option<(&'static Table, &'static str)> {
    match shape {
        Shape::Table(table) => Some((table, "")),
        Shape::List(list) => inner(&list.item).map(|(table, _)| (table, "[]")),
        Shape::Text(_) | Shape::Integer { .. } | Shape::Word(_) | Shape::Duration { .. } => None,
    }
}

fn line(page: &mut String, text: &str) {
    page.push_str(text);
    page.push('\n');
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests are asked by the environment to write the page")]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::AccessField;

    #[test]
    fn the_page_in_the_repository_is_this_one() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/config.md");
        let page = markdown();
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &page).unwrap();
        }
        let stored = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            stored == page,
            "docs/reference/config.md is not current: run this test with UPDATE_EXPECT=1"
        );
    }

    #[test]
    fn every_key_is_on_the_page() {
        let page = markdown();
        for key in ["listeners[].tls.certificates[]", "services[].health.http", "agent.kernel"] {
            assert!(page.contains(&format!("## `{key}`")), "{key}");
        }
        for key in ["seedFile", "queryParams", "unhealthyThreshold"] {
            assert!(page.contains(&format!("| `{key}` |")), "{key}");
        }
        let fields: Vec<String> = AccessField::WORDS.iter().map(|word| format!("`{word}`")).collect();
        assert!(page.contains(&format!("What a line has: {}.", fields.join(", "))));
    }
}
