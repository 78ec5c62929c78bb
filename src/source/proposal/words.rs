//! What names say: their words, one by one and in the singular, and the words that mean something to the rules.
//!
//! Names never decide alone where a key can; they settle what keys leave open. All lists are here, so that a guess that
//! a team does not share can be traced to its word.

/// Tables that are most often the tenant.
const TENANTS: &[&str] = &["tenant", "organization", "organisation", "org", "workspace", "account", "company"];

/// Tables that may be the tenant where no better one stands.
const MAYBE_TENANTS: &[&str] = &[
    "agency",
    "brand",
    "business",
    "client",
    "clinic",
    "club",
    "community",
    "customer",
    "firm",
    "group",
    "guild",
    "household",
    "institution",
    "league",
    "merchant",
    "practice",
    "school",
    "server",
    "shop",
    "site",
    "space",
    "store",
    "studio",
    "team",
    "vendor",
];

/// Tables that many others lead to and that are never the tenant.
const LOOKUPS: &[&str] = &[
    "category",
    "city",
    "country",
    "currency",
    "language",
    "locale",
    "permission",
    "plan",
    "region",
    "role",
    "state",
    "status",
    "tag",
    "timezone",
    "type",
    "unit",
];

/// Tables of people who log in.
const PEOPLE: &[&str] = &["user", "person", "profile", "employee", "staff", "account", "login", "identity"];

/// Columns that people who log in have.
const LOGINS: &[&str] = &["email", "login", "username", "password", "handle"];

/// Tables that put users into groups.
const MEMBERSHIPS: &[&str] = &[
    "access",
    "collaborator",
    "enrollment",
    "enrolment",
    "member",
    "membership",
    "participant",
    "participation",
    "roster",
    "subscriber",
];

/// Tables whose rows concern one user alone.
const PERSONAL: &[&str] = &[
    "bookmark",
    "draft",
    "favorite",
    "favourite",
    "inbox",
    "notification",
    "preference",
    "read",
    "recent",
    "reminder",
    "star",
    "unread",
];

/// Tables that keep everything that ever happened.
const HISTORIES: &[&str] = &[
    "activity",
    "audit",
    "changelog",
    "entry",
    "event",
    "history",
    "log",
    "metric",
    "revision",
    "snapshot",
    "trace",
    "version",
];

/// Tables whose rows no client should hold.
const SECRETS: &[&str] = &[
    "credential",
    "device",
    "invitation",
    "invite",
    "key",
    "otp",
    "passkey",
    "password",
    "secret",
    "session",
    "token",
];

/// Columns that no client should hold: a name that has one of these words.
const SECRET_COLUMNS: &[&str] = &[
    "cvc",
    "cvv",
    "encrypted",
    "hash",
    "hashed",
    "iban",
    "otp",
    "passphrase",
    "passwd",
    "password",
    "pwd",
    "salt",
    "secret",
    "ssn",
    "token",
    "totp",
];

/// Tables of tools: migrations, queues.
const TOOLS: &[&str] = &[
    "__diesel_schema_migrations",
    "__drizzle_migrations",
    "__efmigrationshistory",
    "_prisma_migrations",
    "_sqlx_migrations",
    "alembic_version",
    "ar_internal_metadata",
    "databasechangelog",
    "databasechangeloglock",
    "delayed_jobs",
    "django_admin_log",
    "django_content_type",
    "django_migrations",
    "django_session",
    "flyway_schema_history",
    "gorp_migrations",
    "goose_db_version",
    "knex_migrations",
    "knex_migrations_lock",
    "migrations",
    "oban_jobs",
    "oban_peers",
    "phinxlog",
    "que_jobs",
    "refinery_schema_history",
    "schema_migrations",
    "schema_version",
    "seaql_migrations",
    "sequelizemeta",
    "typeorm_metadata",
];

/// Words in front of a table's name that say nothing about its rows.
const PREFIXES: &[&str] = &["app", "tbl", "tb", "t"];

/// Words whose plural looks like a singular, or is none by rule.
const IRREGULAR: &[(&str, &str)] = &[
    ("people", "person"),
    ("children", "child"),
    ("men", "man"),
    ("women", "woman"),
    ("indices", "index"),
    ("analyses", "analysis"),
    ("statuses", "status"),
    ("aliases", "alias"),
    ("buses", "bus"),
    ("media", "media"),
    ("movies", "movie"),
    ("series", "series"),
    ("news", "news"),
    ("staff", "staff"),
    ("species", "species"),
];

/// The words of a name in lower case, as written with `_`, blanks or humps.
pub fn words(name: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut open = false;
    let letters: Vec<char> = name.chars().collect();
    for (place, letter) in letters.iter().enumerate() {
        if !letter.is_alphanumeric() {
            open = false;
            continue;
        }
        let before = place.checked_sub(1).map(|before| letters[before]);
        let after = letters.get(place + 1);
        let hump = letter.is_uppercase()
            && (before.is_some_and(|before| before.is_lowercase() || before.is_ascii_digit())
                || before.is_some_and(char::is_uppercase) && after.is_some_and(|after| after.is_lowercase()));
        if !open || hump {
            words.push(String::new());
        }
        open = true;
        if let Some(word) = words.last_mut() {
            word.extend(letter.to_lowercase());
        }
    }
    words
}

/// A word in the singular.
pub fn singular(word: &str) -> String {
    if let Some((_, one)) = IRREGULAR.iter().find(|(many, _)| *many == word) {
        return (*one).to_owned();
    }
    let cut = |end: &str, by: &str| word.strip_suffix(end).map(|stem| format!("{stem}{by}"));
    if word.len() > 4 && word.ends_with("ies") {
        return cut("ies", "y").unwrap_or_default();
    }
    if ["sses", "ches", "shes", "xes", "zes"].iter().any(|end| word.ends_with(end)) {
        return cut("es", "").unwrap_or_default();
    }
    if word.len() > 2 && word.ends_with('s') && !["ss", "us", "sis", "xis"].iter().any(|end| word.ends_with(end)) {
        return cut("s", "").unwrap_or_default();
    }
    word.to_owned()
}

/// What the rows of a table are, as words in the singular: `app_users` and `"Users"` hold a user.
pub fn noun(table: &str) -> Vec<String> {
    let mut words: Vec<String> = words(table).iter().map(|word| singular(word)).collect();
    while words.len() > 1 && PREFIXES.contains(&words[0].as_str()) {
        words.remove(0);
    }
    words
}

/// What a column leads to, by its name: `team_id`, `teamId` and `team_ids` name a team. `None` when it names no id.
pub fn led_to(column: &str) -> Option<Vec<String>> {
    let mut words = words(column);
    let last = words.pop()?;
    let names_id = ["id", "ids", "uuid", "uuids", "fk"].contains(&last.as_str());
    (names_id && !words.is_empty()).then(|| words.iter().map(|word| singular(word)).collect())
}

/// The words of a column that holds an id, without the word that says so.
pub fn stem(column: &str) -> Vec<String> {
    led_to(column).unwrap_or_else(|| words(column).iter().map(|word| singular(word)).collect())
}

fn last_is(noun: &[String], list: &[&str]) -> bool {
    noun.last().is_some_and(|word| list.contains(&word.as_str()))
}

fn any_is(noun: &[String], list: &[&str]) -> bool {
    noun.iter().any(|word| list.contains(&word.as_str()))
}

/// How much a table's name speaks for its being the tenant, from -1 to 1.
pub fn tenancy(noun: &[String]) -> f64 {
    let whole = if noun.len() == 1 { 1.0 } else { 0.4 };
    if last_is(noun, TENANTS) {
        whole
    } else if last_is(noun, MAYBE_TENANTS) {
        whole / 2.0
    } else if last_is(noun, LOOKUPS) || last_is(noun, PEOPLE) {
        -1.0
    } else {
        0.0
    }
}

/// Whether a column without a table behind it is named like the tenant's.
pub fn names_tenant(column: &str) -> bool {
    led_to(column).is_some_and(|noun| noun.len() == 1 && last_is(&noun, TENANTS))
}

/// Whether a table's rows are people.
pub fn people(noun: &[String]) -> bool {
    last_is(noun, PEOPLE)
}

/// Whether people with this column log in.
pub fn login(column: &str) -> bool {
    any_is(&words(column), LOGINS)
}

/// Whether a table's name says that it puts users into groups.
pub fn membership(noun: &[String]) -> bool {
    any_is(noun, MEMBERSHIPS)
}

/// Whether a table's name says that each row concerns one user alone.
pub fn personal(noun: &[String]) -> bool {
    any_is(noun, PERSONAL)
}

/// Whether a table's name says that it only grows.
pub fn history(noun: &[String]) -> bool {
    last_is(noun, HISTORIES)
}

/// Whether a table's name says that it holds secrets.
pub fn secret_table(noun: &[String]) -> bool {
    last_is(noun, SECRETS)
}

/// Whether a column's name says that it holds a secret.
pub fn secret_column(column: &str) -> bool {
    let words = words(column);
    let pair = |first: &str, second: &str| words.windows(2).any(|pair| pair[0] == first && pair[1] == second);
    any_is(&words, SECRET_COLUMNS) || pair("api", "key") || pair("private", "key") || pair("card", "number")
}

/// Whether a table belongs to a tool beside the application.
pub fn tool(table: &str) -> bool {
    TOOLS.contains(&table.to_lowercase().as_str())
}

/// Whether a column says that a row is deleted though it stands.
pub fn deleted(column: &str) -> bool {
    ["deleted_at", "deleted", "is_deleted", "deleted_on", "discarded_at", "removed_at"]
        .contains(&words(column).join("_").as_str())
}

/// Whether a column says who, or which one in a special part, rather than what a row belongs to.
pub fn role(column: &str) -> bool {
    const ROLES: &[&str] = &[
        "active", "actor", "assignee", "author", "by", "cover", "created", "creator", "current", "default", "editor",
        "first", "last", "latest", "lead", "modified", "next", "original", "owner", "pinned", "previous", "primary",
        "related", "source", "target", "updated",
    ];
    any_is(&stem(column), ROLES)
}

/// The class of a table's rows on the wire: letters and digits of ASCII, capitals in front. `None` when none is left.
pub fn class(noun: &[String]) -> Option<String> {
    let mut class = String::new();
    for word in noun {
        let plain: String = word.chars().filter(char::is_ascii_alphanumeric).collect();
        let mut letters = plain.chars();
        class.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        class.push_str(letters.as_str());
    }
    class.chars().next().is_some_and(|first| first.is_ascii_alphabetic()).then_some(class)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_words() {
        for (name, expected) in [
            ("order_items", "order item"),
            ("OrderItems", "order item"),
            ("orderItem", "order item"),
            ("HTTPRoutes", "http route"),
            ("app_users", "user"),
            ("tblPeople", "person"),
            ("line items", "line item"),
            ("app", "app"),
        ] {
            assert_eq!(noun(name).join(" "), expected, "{name}");
        }
    }

    #[test]
    fn plurals_become_singular() {
        for (many, one) in [
            ("categories", "category"),
            ("boxes", "box"),
            ("addresses", "address"),
            ("status", "status"),
            ("analysis", "analysis"),
            ("emojis", "emoji"),
            ("houses", "house"),
            ("gas", "ga"),
            ("ties", "tie"),
            ("people", "person"),
        ] {
            assert_eq!(singular(many), one, "{many}");
        }
    }

    #[test]
    fn columns_lead_to_nouns() {
        let to = |column: &str| led_to(column).map(|noun| noun.join(" "));
        assert_eq!(to("team_id").as_deref(), Some("team"));
        assert_eq!(to("orderItemId").as_deref(), Some("order item"));
        assert_eq!(to("label_ids").as_deref(), Some("label"));
        assert_eq!(to("id"), None);
        assert_eq!(to("title"), None);
        assert_eq!(stem("created_by").join(" "), "created by");
    }

    #[test]
    fn classes_are_plain() {
        let of = |table: &str| class(&noun(table));
        assert_eq!(of("order_items").as_deref(), Some("OrderItem"));
        assert_eq!(of("2fa"), None);
        assert_eq!(of("größe").as_deref(), Some("Gre"));
        assert_eq!(of("大"), None);
    }

    #[test]
    fn secrets_are_known_by_their_words() {
        for column in ["password_hash", "apiKey", "reset_token", "encrypted_body", "card_number", "otp"] {
            assert!(secret_column(column), "{column}");
        }
        for column in ["title", "key", "number", "tokenizer", "hashtag"] {
            assert!(!secret_column(column), "{column}");
        }
    }
}
