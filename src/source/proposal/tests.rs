//! The rules, one by one, without a server.

use super::survey::{Column, ForeignKey, Table, TableKind, Value};
use super::*;
use crate::model::catalog::TableName;

/// `name: type! > table *, …; key, key; …`: columns, each with `!` when it can't be null, `> table` when a foreign key
/// leads to that table's first column, `*` when it cascades; then unique keys, the primary one first.
fn table(name: &str, columns: &str) -> Table {
    let (schema, plain) = name.split_once('.').unwrap_or(("public", name));
    let mut table = Table {
        name: TableName { schema: schema.into(), name: plain.into() },
        kind: TableKind::Plain,
        comment: String::new(),
        readable: true,
        hidden: false,
        columns: Vec::new(),
        unique: Vec::new(),
        indexed: Vec::new(),
        foreign_keys: Vec::new(),
        rows: None,
        bytes: 0,
    };
    let mut parts = columns.split(';');
    for column in parts.next().unwrap().split(',') {
        let (column, key) = column.split_once('>').map_or((column, None), |(column, key)| (column, Some(key.trim())));
        let (name, sql_type) = column.split_once(':').unwrap();
        let (name, sql_type) = (name.trim(), sql_type.trim());
        let required = sql_type.ends_with('!');
        let sql_type = sql_type.trim_end_matches('!');
        let scalar = sql_type.trim_end_matches("[]");
        table.columns.push(Column {
            name: name.into(),
            sql_type: sql_type.into(),
            value: match scalar {
                "uuid" => Value::Uuid,
                "int" => Value::Integer,
                "text" => Value::Text,
                "date" | "boolean" => Value::Plain,
                _ => Value::Odd,
            },
            array: scalar != sql_type,
            nullable: !required,
            nulls: None,
            commonest: None,
            width: None,
        });
        if let Some(key) = key {
            let to = key.trim_end_matches(" *");
            let (schema, to) = to.split_once('.').unwrap_or(("public", to));
            table.foreign_keys.push(ForeignKey {
                columns: vec![name.into()],
                to: TableName { schema: schema.into(), name: to.into() },
                to_columns: vec!["id".into()],
                cascades: key.ends_with('*'),
            });
        }
    }
    table.unique = parts.map(|key| key.split(',').map(|column| column.trim().to_owned()).collect()).collect();
    if table.unique.is_empty() {
        table.unique.push(vec![table.columns[0].name.clone()]);
    }
    table.indexed = table.unique.iter().map(|key| key[0].clone()).collect();
    table
}

fn survey(tables: Vec<Table>) -> Survey {
    Survey { tables, public: true }
}

/// An org with users, teams and members of teams.
fn office(more: Vec<Table>) -> Survey {
    let mut tables = vec![
        table("org", "id: uuid!, name: text!"),
        table("app_user", "id: uuid!, org_id: uuid! > org, email: text!"),
        table("team", "id: uuid!, org_id: uuid! > org, name: text!"),
        table(
            "team_member",
            "id: uuid!, org_id: uuid! > org, team_id: uuid! > team *, user_id: uuid! > app_user *; id; team_id, user_id",
        ),
    ];
    tables.extend(more);
    survey(tables)
}

#[track_caller]
fn proposed(survey: &Survey) -> Proposal {
    propose(survey, None).unwrap_or_else(|error| panic!("{error:?}"))
}

#[track_caller]
fn model<'a>(proposal: &'a Proposal, name: &str) -> &'a ProposedModel {
    let found = proposal.models.iter().find(|proposed| proposed.model.name == name);
    found.unwrap_or_else(|| panic!("no {name} in {proposal:#?}"))
}

/// `org | kind=column … | parent by column`.
fn standing(proposal: &Proposal, name: &str) -> String {
    let model = &model(proposal, name).model;
    let groups: Vec<String> = model.groups.iter().map(|(kind, column)| format!("{kind}={column}")).collect();
    let from = model.from.as_ref().map_or_else(String::new, |from| format!("{} by {}", from.model, from.by));
    format!("{} | {} | {from}", model.org.as_deref().unwrap_or_default(), groups.join(" "))
}

#[track_caller]
fn left_out<'a>(proposal: &'a Proposal, table: &str) -> &'a LeftOut {
    let found = proposal.left_out.iter().find(|left| left.table.to_string() == table);
    found.unwrap_or_else(|| panic!("{table} is not left out of {proposal:#?}"))
}

#[test]
fn the_tenant_is_what_most_lead_to_and_is_called_so() {
    assert_eq!(proposed(&office(vec![])).tenant, "org");
    // A currency is led to by all, and is no tenant; a league has no telling name.
    let league = survey(vec![
        table("currency", "id: text!"),
        table("league", "id: int!, currency_id: text! > currency"),
        table("match", "id: int!, league_id: int! > league, currency_id: text! > currency"),
        table("player", "id: int!, league_id: int! > league, currency_id: text! > currency"),
    ]);
    assert_eq!(proposed(&league).tenant, "league");
    let plain = survey(vec![
        table("note", "id: int!, book_id: int! > book"),
        table("book", "id: int!"),
        table("pen", "id: int!"),
    ]);
    let none = propose(&plain, None).unwrap_err();
    assert_eq!(none, NoTenant { wished: None, candidates: vec!["book".into()] });
    assert_eq!(propose(&plain, Some("book")).unwrap().tenant, "book");
    assert_eq!(propose(&plain, Some("shelf")).unwrap_err().wished.as_deref(), Some("shelf"));
}

#[test]
fn a_tenant_may_be_a_column_without_a_table() {
    let bare = survey(vec![table("note", "id: int!, tenant_id: text!"), table("pen", "id: int!, tenant_id: text!")]);
    let proposal = proposed(&bare);
    assert_eq!(proposal.tenant, "the column tenant_id");
    assert_eq!(standing(&proposal, "Note"), "tenant_id |  | ");
}

#[test]
fn a_tenant_may_be_held_by_its_slug() {
    let mut tables = office(vec![]).tables;
    tables[0] = table("org", "id: uuid!, slug: text!; id; slug");
    for other in &mut tables[1..] {
        let at = other.columns.iter().position(|column| column.name == "org_id").unwrap();
        other.columns[at].value = Value::Text;
        other
            .foreign_keys
            .iter_mut()
            .filter(|key| key.to.name == "org")
            .for_each(|key| key.to_columns = vec!["slug".into()]);
    }
    assert_eq!(standing(&proposed(&survey(tables)), "Org"), "slug |  | ");
}

#[test]
fn members_make_groups_and_rows_below_them_are_theirs() {
    let proposal = proposed(&office(vec![
        table("issue", "id: uuid!, org_id: uuid! > org, team_id: uuid! > team, author_id: uuid > app_user"),
        table("comment", "id: uuid!, issue_id: uuid! > issue *, author_id: uuid! > app_user"),
        table("history", "id: uuid!, org_id: uuid! > org, issue_id: uuid! > issue"),
        table("label", "id: uuid!, org_id: uuid! > org"),
        table("board", "id: uuid!, org_id: uuid! > org, team_ids: uuid[]"),
        table("saved_bookmark", "id: uuid!, org_id: uuid! > org, user_id: uuid! > app_user, issue_id: uuid! > issue"),
    ]));
    for (name, expected) in [
        ("User", "org_id |  | "),
        ("Team", "org_id | team=id | "),
        ("TeamMember", "org_id | team=team_id user=user_id | "),
        ("Issue", "org_id | team=team_id | "),
        ("Comment", " |  | Issue by issue_id"),
        ("History", "org_id |  | Issue by issue_id"),
        ("Label", "org_id |  | "),
        ("Board", "org_id | team=team_ids | "),
        ("SavedBookmark", "org_id | user=user_id | "),
    ] {
        assert_eq!(standing(&proposal, name), expected, "{name}");
    }
    let membership = &proposal.memberships[0];
    assert_eq!(membership.obstacle, None);
    assert_eq!((membership.membership.kind.as_str(), membership.membership.org.as_str()), ("team", "org_id"));
}

#[test]
fn whose_a_row_is_is_asked() {
    let proposal = proposed(&office(vec![
        table("time_entry", "id: uuid!, org_id: uuid! > org, user_id: uuid! > app_user"),
        table("post", "id: uuid!, org_id: uuid! > org, author_id: uuid! > app_user"),
    ]));
    let asked = |name: &str| model(&proposal, name).decide.iter().any(|doubt| doubt.contains("for that user only"));
    assert!(asked("TimeEntry") && !asked("Post") && !asked("TeamMember"));
}

#[test]
fn who_points_at_a_group_is_not_in_it() {
    let proposal = proposed(&office(vec![
        table("report", "id: uuid!, org_id: uuid! > org, escalation_squad: uuid > team"),
        table("issue_like", "issue_id: uuid! > report, user_id: uuid! > app_user; issue_id, user_id"),
    ]));
    assert_eq!(standing(&proposal, "Report"), "org_id |  | ");
    assert!(model(&proposal, "Report").why.iter().any(|why| why.contains("`escalation_squad` leads to a group, too")));
    assert_eq!(proposal.memberships.len(), 1, "a like is no membership");
}

#[test]
fn a_membership_without_an_org_is_said_and_stays_closed() {
    let mut office = office(vec![]);
    office.tables[3] = table("team_member", "team_id: uuid! > team, user_id: uuid! > app_user; team_id, user_id");
    let proposal = proposed(&office);
    assert!(proposal.memberships[0].obstacle.as_ref().unwrap().contains("has no column with the org"));
    assert_eq!(standing(&proposal, "Team"), "org_id | team=id | ");
    assert!(left_out(&proposal, "team_member").why.contains("composite (team_id, user_id)"));
}

#[test]
fn the_parent_is_what_a_row_belongs_to() {
    let proposal = proposed(&office(vec![
        table("product", "id: uuid!, org_id: uuid! > org"),
        table("order", "id: uuid!, org_id: uuid! > org"),
        table("order_item", "id: uuid!, product_id: uuid! > product, order_id: uuid! > order"),
        table("item_note", "id: uuid!, created_by: uuid! > app_user, order_item_id: uuid! > order_item *"),
    ]));
    assert_eq!(standing(&proposal, "OrderItem"), " |  | Order by order_id");
    assert_eq!(standing(&proposal, "ItemNote"), " |  | OrderItem by order_item_id");
    let rivals = &model(&proposal, "OrderItem").decide;
    assert!(rivals.iter().any(|doubt| doubt.contains("`product_id` as well")), "{rivals:?}");
}

#[test]
fn parents_in_a_circle_are_entered_where_an_org_is() {
    let proposal = proposed(&office(vec![
        table("thread", "id: uuid!, org_id: uuid! > org, post_id: uuid > post"),
        table("post", "id: uuid!, thread_id: uuid! > thread *"),
        table("a", "id: uuid!, b_id: uuid! > b"),
        table("b", "id: uuid!, a_id: uuid! > a"),
    ]));
    assert_eq!(standing(&proposal, "Post"), " |  | Thread by thread_id");
    assert!(left_out(&proposal, "a").why.starts_with("no column leads from it to the tenant"));
}

#[test]
fn composite_keys_lead_by_the_column_that_names_the_row() {
    let mut tables = office(vec![]).tables;
    let mut comment = table("comment", "id: uuid!, org_id: uuid!, team_id: uuid!");
    comment.foreign_keys.push(ForeignKey {
        columns: vec!["org_id".into(), "team_id".into()],
        to: TableName { schema: "public".into(), name: "team".into() },
        to_columns: vec!["org_id".into(), "id".into()],
        cascades: false,
    });
    tables.push(comment);
    let proposal = proposed(&survey(tables));
    assert_eq!(standing(&proposal, "Comment"), "org_id | team=team_id | ");
}

#[test]
fn what_can_not_be_a_model_says_why_and_what_would_mend_it() {
    let mut tables = vec![
        table("line", "order: uuid!, number: int!, org_id: uuid! > org; order, number"),
        table("local", "org_id: uuid! > org, id: int!; org_id, id"),
        table("heap", "org_id: uuid! > org, id: int"),
        table("odd", "id: float8!, org_id: uuid! > org"),
        table("user_session", "id: uuid!, user_id: uuid! > app_user"),
        table("schema_migrations", "version: text!"),
        table("country", "id: text!"),
        table("locked", "id: uuid!, org_id: uuid! > org"),
        table("shown", "id: uuid, org_id: uuid"),
        table("line_note", "id: uuid!, line_id: uuid! > line"),
    ];
    tables[2].unique.clear();
    tables[7].readable = false;
    tables[8].kind = TableKind::View;
    let proposal = proposed(&office(tables));
    for (name, why, mend) in [
        ("line", "composite (order, number)", "ADD COLUMN \"id\" uuid"),
        ("local", "composite (org_id, id)", "CREATE UNIQUE INDEX CONCURRENTLY ON \"public\".\"local\" (\"id\")"),
        ("heap", "no primary key", "ADD COLUMN \"row_id\" uuid"),
        ("odd", "`id` is a float8", "ADD COLUMN"),
        ("user_session", "lets people in", "by hand"),
        ("schema_migrations", "a tool", ""),
        ("country", "no column leads", "add a column with the org"),
        ("line_note", "goes by `line`, which is left out", "mend that one"),
        ("locked", "may not read", "GRANT SELECT ON \"public\".\"locked\""),
        ("shown", "a view", "managed = false"),
    ] {
        let left = left_out(&proposal, name);
        assert!(left.why.contains(why) && left.mend.contains(mend), "{left:?}");
    }
    assert_eq!(proposal.models.len(), 4);
}

#[test]
fn users_of_several_orgs_are_no_rows_of_one() {
    let proposal = proposed(&survey(vec![
        table("workspace", "id: int!"),
        table("user", "id: int!, email: text!"),
        table("workspace_user", "id: int!, workspace_id: int! > workspace, user_id: int! > user"),
        table("preference", "id: int!, user_id: int! > user"),
    ]));
    assert!(left_out(&proposal, "user").why.contains("a user may be in several"));
    assert!(left_out(&proposal, "preference").why.contains("users belong to no one org"));
    assert!(proposal.memberships.is_empty(), "the tenant's members are no group within it");
}

#[test]
fn columns_are_left_out_renamed_filtered_and_asked_by() {
    let mut thing = table(
        "thing",
        "id: uuid!, org_id: uuid! > org, team_id: uuid! > team, label_id: uuid > label, api_key: text, words: tsvector, \
         userName: text, user_name: text, __class: text, deletedAt: date",
    );
    thing.indexed = vec!["team_id".into()];
    let proposal = proposed(&office(vec![thing, table("label", "id: uuid!, org_id: uuid! > org")]));
    let model = &model(&proposal, "Thing").model;
    assert_eq!(model.exclude, ["api_key", "words"]);
    assert_eq!(model.rename["user_name"], "userName2");
    assert_eq!(model.rename["__class"], "class2");
    assert_eq!(model.filter.as_deref(), Some("\"deletedAt\" is null"));
    assert_eq!(model.keys, ["teamId"], "only what an index finds");
}

#[test]
fn sizes_decide_when_rows_are_sent() {
    let sized = |name: &str, mib: u64, share: f64| {
        let mut sized = table(name, "id: uuid!, org_id: uuid! > org");
        (sized.rows, sized.bytes) = (Some(1000.0), mib << 20);
        sized.columns[1].commonest = Some(share);
        sized
    };
    let proposal = proposed(&office(vec![
        sized("small", 10, 0.2),
        sized("middling", 10, 0.9),
        sized("large", 100, 0.9),
        sized("huge", 4000, 0.9),
        sized("audit_log", 1, 0.9),
    ]));
    let load = |name: &str| model(&proposal, name).model.load;
    assert_eq!(load("Small"), Load::Instant);
    assert_eq!(load("Middling"), Load::Lazy);
    assert_eq!(load("Large"), Load::Partial);
    assert_eq!(load("Huge"), Load::Explicit);
    assert_eq!(load("AuditLog"), Load::Partial);
}

#[test]
fn classes_meet_no_other() {
    let proposal = proposed(&office(vec![
        table("crm.teams", "id: uuid!, org_id: uuid! > org"),
        table("Team", "id: uuid!, org_id: uuid! > org"),
        table("sync_actions", "id: uuid!, org_id: uuid! > org"),
        table("大", "id: uuid!, org_id: uuid! > org"),
    ]));
    let names: Vec<&str> = proposal.models.iter().map(|proposed| proposed.model.name.as_str()).collect();
    for name in ["Team", "CrmTeam", "PublicTeam", "Public", "PublicSyncAction"] {
        assert!(names.contains(&name), "{names:?}");
    }
    let log = proposal.log.as_ref().expect("the log's usual name is taken");
    assert_eq!(log.table.to_string(), "headstart_sync_actions");
}
