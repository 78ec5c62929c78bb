//! `headstart init` on schemas that the rules were not made from: a shop, a tracker, a chat.

use headstart::model::{Catalog, Model};

use crate::support::postgres::Database;
use crate::support::server::Setup;

const SHOP: &str = include_str!("init/shop.sql");
const TRACKER: &str = include_str!("init/tracker.sql");
const CHAT: &str = include_str!("init/chat.sql");
const ODD: &str = include_str!("init/odd.sql");

async fn database(sql: &str) -> Database {
    let database = Database::create().await;
    database.execute(sql).await;
    database
}

/// Proposes, makes the log, checks and dumps, as a newcomer would. Gives the file and what `init` said of it.
#[track_caller]
fn adopted(database: &Database) -> (String, String) {
    let setup = Setup::new(&database.url(), "");
    let said = setup.must(&["init", "--force"]);
    setup.must(&["migrate", "--apply"]);
    let checked = setup.must(&["check"]);
    assert!(checked.lines().all(|line| !line.starts_with("error")), "{checked}");
    setup.must(&["dump", "--all"]);
    (std::fs::read_to_string(setup.folder.path().join("catalog.toml")).unwrap(), said)
}

/// `Model table: org, kind=column …, < Parent by column`.
fn told(model: &Model) -> String {
    let groups = model.groups.iter().map(|(kind, column)| format!("{kind}={column}"));
    let from = model.from.iter().map(|from| format!("< {} by {}", from.model, from.by));
    let parts: Vec<String> = model.org.iter().cloned().chain(groups).chain(from).collect();
    format!("{} {}: {}", model.name, model.table, parts.join(", "))
}

#[track_caller]
fn holds(catalog: &str, expected: &[&str]) {
    let catalog = Catalog::parse(catalog).unwrap();
    let mut models: Vec<String> = catalog.models().iter().map(told).collect();
    models.sort();
    assert_eq!(models, expected);
}

#[tokio::test]
async fn a_shop_in_mixed_case() {
    let database = database(SHOP).await;
    database
        .execute(
            r#"INSERT INTO "Currency" VALUES ('EUR', 'Euro'); INSERT INTO "Store" VALUES ('s', 'S', 's', 'EUR', 'sk');
               INSERT INTO "Order" (id, number, "storeId") VALUES ('o', 1, 's');
               INSERT INTO "OrderNote" ("orderId", body) VALUES ('o', 'gift')"#,
        )
        .await;
    let (catalog, said) = adopted(&database);
    let expected = [
        "Category Category: storeId",
        "Customer Customer: storeId",
        "Order Order: storeId",
        "OrderNote OrderNote: < Order by orderId",
        "Payment Payment: < Order by orderId",
        "Product Product: storeId",
        "ProductVariant ProductVariant: < Product by productId",
        "Store Store: id",
        "User User: storeId",
    ];
    holds(&catalog, &expected);
    let parsed = Catalog::parse(&catalog).unwrap();
    assert_eq!(parsed.model("Product").unwrap().1.filter.as_deref(), Some("\"deletedAt\" is null"));
    assert_eq!(parsed.model("Payment").unwrap().1.exclude, ["cardNumber"]);
    assert_eq!(parsed.model("User").unwrap().1.exclude, ["passwordHash"]);
    assert_eq!(parsed.model("Order").unwrap().1.keys, ["customerId"]);
    for left in [
        "left out: Currency: `code` is a character(3)",
        "left out: DailySales: a view",
        "left out: OrderItem: its key is composite (orderId, line)",
        "left out: Session: by its name it holds what lets people in",
        "left out: _CategoryToProduct: its key is composite (A, B)",
    ] {
        assert!(said.contains(left), "{said}");
    }
}

#[tokio::test]
async fn a_tracker_in_schemas_of_its_own() {
    let database = database(TRACKER).await;
    database
        .execute(
            "WITH c AS (INSERT INTO core.companies (name) VALUES ('C') RETURNING id),
                  s AS (INSERT INTO core.squads (company_id, name) SELECT id, 'S' FROM c RETURNING company_id, id)
             INSERT INTO work.tickets (id, company_id, squad_id, title) SELECT gen_random_uuid(), company_id, id, 'T' FROM s",
        )
        .await;
    let (catalog, said) = adopted(&database);
    let expected = [
        "Bookmark work.bookmarks: company_id, user=person_id",
        "Comment work.comments: company_id, < Ticket by ticket_id",
        "CommentReaction work.comment_reactions: < Comment by comment_id",
        "Company core.companies: id",
        "Epic work.epics: company_id, squad=squad_ids",
        "File work.files: < Ticket by ticket_id",
        "Person core.people: company_id",
        "Squad core.squads: company_id, squad=id",
        "Ticket work.tickets: company_id, squad=squad_id",
        "TicketHistory work.ticket_history: < Ticket by ticket_id",
    ];
    holds(&catalog, &expected);
    let parsed = Catalog::parse(&catalog).unwrap();
    let [squads] = parsed.access().memberships.as_slice() else { panic!("one membership in {catalog}") };
    assert_eq!(squads.table.to_string(), "core.squad_members");
    let columns = [&squads.kind, &squads.org, &squads.user, &squads.group];
    assert_eq!(columns, ["squad", "company_id", "person_id", "squad_id"]);
    assert!(catalog.contains("# Decide: `id` is unique within a partition only"), "{catalog}");
    for left in [
        "left out: core.api_tokens: ",
        "left out: core.squad_members: its key is composite (squad_id, person_id)",
        "left out: work.open_tickets: a view",
        "left out: work.ticket_watchers: its key is composite (ticket_id, person_id)",
        "left out: work.velocity: a materialized view",
    ] {
        assert!(said.contains(left), "{said}");
    }
}

#[tokio::test]
async fn a_chat_without_foreign_keys() {
    let database = database(CHAT).await;
    database
        .execute(
            "INSERT INTO workspaces (name, owner_id) VALUES ('W', 1);
             INSERT INTO channels (workspace_id, name) VALUES (1, 'all'); INSERT INTO messages (channel_id, user_id) VALUES (1, 1)",
        )
        .await;
    let (catalog, said) = adopted(&database);
    let expected = [
        "Channel channels: workspace_id, channel=id",
        "CustomEmoji custom_emojis: workspace_id",
        "Draft drafts: workspace_id, user=user_id",
        "Message messages: channel=channel_id, < Channel by channel_id",
        "Workspace workspaces: id",
        "WorkspaceMember workspace_members: workspace_id",
    ];
    holds(&catalog, &expected);
    for doubt in [
        "# Decide: `is_private` seems to say whether all may see it",
        "# Decide: `channel_members` has no column with the org",
        "# Decide: `owner_id` of `uploads` leads to different tables",
        "# table = \"channel_members\"",
        "which is guessed by its name: no foreign key says so",
    ] {
        assert!(catalog.contains(doubt), "{doubt} in {catalog}");
    }
    for left in [
        "left out: users: its rows belong to no org: a user may be in several",
        "left out: message_reactions: its key is composite (message_id, user_id, emoji)",
        "left out: uploads: no column leads from it to the tenant",
        "left out: device_tokens: ",
        "groups: channel (channel_members; not usable yet",
    ] {
        assert!(said.contains(left), "{said}");
    }
}

#[tokio::test]
async fn names_and_types_that_nobody_expects() {
    let database = database(ODD).await;
    let sql =
        "INSERT INTO \"Weird Schema\".accounts VALUES (1); INSERT INTO \"Weird Schema\".\"line\nbreak\" VALUES (1, 1)";
    database.execute(sql).await;
    let (catalog, said) = adopted(&database);
    let expected = [
        "Account Weird Schema.accounts: id",
        "BigRef big_ref: account_id",
        "Dom dom: account_id",
        "DomChild dom_child: < Dom by dom_id",
        "Enumish enumish: account_id",
        "LineBreak Weird Schema.line\nbreak: account_id",
        "PublicSyncAction sync_actions: account_id",
        "Select Weird Schema.select: account_id",
        "Self self: account_id",
        "WeirdSchema Weird Schema.😀: account_id",
    ];
    holds(&catalog, &expected);
    assert_eq!(Catalog::parse(&catalog).unwrap().log().table.to_string(), "headstart_sync_actions");
    for left in [
        "Weird Schema.dot.ted: a dot",
        "base: it shares rows",
        "derived: it shares",
        "no_columns: it has no primary key",
    ] {
        assert!(said.contains(&format!("left out: {left}")), "{said}");
    }
}

#[tokio::test]
async fn sizes_come_from_statistics() {
    let database = database(SHOP).await;
    database
        .execute(
            r#"INSERT INTO "Currency" VALUES ('EUR', 'Euro');
               INSERT INTO "Store" SELECT n::text, 'S', n::text, 'EUR' FROM generate_series(1, 100) n;
               INSERT INTO "Customer" (id, "storeId") SELECT n::text, CASE WHEN n % 2 = 0 THEN 1 ELSE 1 + n % 100 END::text
               FROM generate_series(1, 20000) n; ANALYZE"#,
        )
        .await;
    let setup = Setup::new(&database.url(), "mine");
    let printed = setup.must(&["init", "--print"]);
    // Every second customer is of store 1, and 200 of the others.
    let share = printed.split("# About ").find(|part| part.contains("name  = \"Customer\"")).unwrap();
    let rows: u32 = share.split(' ').next().unwrap().replace(',', "").parse().unwrap();
    assert!((9_000..11_500).contains(&rows), "{share}");
    let kept = std::fs::read_to_string(setup.folder.path().join("catalog.toml")).unwrap();
    assert_eq!(kept, "mine", "nothing is written");
}

#[tokio::test]
async fn what_it_can_not_do_it_says() {
    let refused = |database: &Database, arguments: &[&str], word: &str| {
        let output = Setup::new(&database.url(), "").run(arguments);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.starts_with("error: ") && error.contains(word), "{error}");
    };
    let empty = Database::create().await;
    refused(&empty, &["init", "--print"], "there is no table in the database");
    empty.execute("CREATE TABLE note (id int PRIMARY KEY, body text)").await;
    refused(&empty, &["init", "--print"], "no table leads to another one");
    let shop = database(SHOP).await;
    refused(&shop, &["init", "--print", "--schema", "warehouse"], "there is no table in warehouse");
    let unknown = "nothing that other tables lead to is called `Shop`; name it with --tenant; others lead to: ";
    refused(&shop, &["init", "--print", "--tenant", "Shop"], unknown);
    refused(&shop, &["init"], "catalog.toml is there already");
}
