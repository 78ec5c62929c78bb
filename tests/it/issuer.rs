//! Tokens of an issuer, through the door of the real binary: which keys are taken, what is asked of the issuer, and what
//! callers learn.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};

use crate::support::authority::Authority;
use crate::support::issuer::{Answer, Issuer, Signer};
use crate::support::postgres::Database;
use crate::support::server::{SECRET, Server, Setup};
use crate::support::studio;

/// The least time between two fetches, in these tests.
const PAUSE: Duration = Duration::from_secs(2);

/// Settings of a service whose tokens come from this issuer.
async fn setup(database: &Database, url: &str, authority: &Authority) -> Setup {
    database.connect().await.batch_execute(studio::TABLES).await.expect("the tables");
    let mut setup = Setup::new(&database.url(), studio::CATALOG);
    setup.must(&["migrate", "--apply"]);
    setup.set("HEADSTART_AUTH_JWKS_URL", url);
    setup.set("HEADSTART_AUTH_JWKS_CA_PATH", authority.certificate().display().to_string());
    setup.set("HEADSTART_AUTH_JWKS_PAUSE_S", PAUSE.as_secs().to_string());
    setup.set("HEADSTART_AUTH_AUDIENCE", "sync").set("HEADSTART_AUTH_ISSUER", "login");
    setup
}

fn claims() -> Value {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    json!({"org": "7", "sub": "ann", "aud": ["sync", "other"], "iss": "login", "exp": now + 600})
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

/// The status of an answer; what else it says must not differ from one refusal to another.
async fn ask(server: &Server, token: &str) -> u16 {
    server.get("/sync/groups", token).send().await.expect("an answer").status().as_u16()
}

/// A refusal without what differs by nature.
async fn refusal(server: &Server, token: &str) -> String {
    let answer = server.get("/sync/groups", token).send().await.expect("an answer");
    assert_eq!(answer.status(), 401, "{token}");
    let mut headers = answer.headers().clone();
    assert!(headers.remove("x-request-id").is_some() && headers.remove("date").is_some());
    let headers: BTreeSet<String> = headers.iter().map(|header| format!("{header:?}")).collect();
    let mut body: Value = serde_json::from_slice(&answer.bytes().await.expect("a body")).expect("JSON");
    assert!(body["requestId"].take().is_string());
    format!("{headers:?} {body}")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuers_keys_are_fetched_kept_and_fetched_anew_when_a_name_is_new() {
    let (authority, database) = (Authority::new(), Database::create().await);
    let issuer = Issuer::start(&authority.issue("IP:127.0.0.1")).await;
    let server = setup(&database, &issuer.url, &authority).await.serve().await;
    let [rsa, ec, ed] = Signer::trusted();
    let secret = Signer(Algorithm::HS256, EncodingKey::from_secret(SECRET.as_bytes()));

    // The issuer does not answer yet: nobody knows, and clients are told to come again.
    let unknown = server.get("/sync/groups", &rsa.sign(Some("rsa-1"), &claims())).send().await.expect("an answer");
    assert_eq!((unknown.status().as_u16(), unknown.headers().contains_key("retry-after")), (503, true));
    assert!(unknown.text().await.expect("a body").contains("\"ISSUER_UNAVAILABLE\""));
    assert_eq!(ask(&server, &secret.sign(None, &claims())).await, 200, "who brings a key of ours is known");

    issuer.publish(&[("rsa-1", &rsa), ("ec-1", &ec), ("ed-1", &ed)]);
    let good = rsa.sign(Some("rsa-1"), &claims());
    server.until("the keys are there", async || ask(&server, &good).await == 200).await;
    for (kid, signer) in [("rsa-1", &rsa), ("ec-1", &ec), ("ed-1", &ed)] {
        assert_eq!(ask(&server, &signer.sign(Some(kid), &claims())).await, 200, "{kid}");
        assert_eq!(ask(&server, &signer.sign(None, &claims())).await, 200, "{kid}, unnamed");
    }

    // A rotation: the first to bring the new name wait for one fetch together.
    let others = Signer::others();
    issuer.publish(&[("rsa-1", &rsa), ("rsa-2", &others[0])]);
    tokio::time::sleep(PAUSE).await;
    let before = issuer.asked();
    let new = others[0].sign(Some("rsa-2"), &claims());
    assert_eq!(join_all((0..20).map(|_| ask(&server, &new))).await, [200; 20]);
    assert_eq!(issuer.asked(), before + 1, "one fetch for all");
    assert_eq!(ask(&server, &ec.sign(Some("ec-1"), &claims())).await, 401, "taken back");

    // Names cost nothing to invent.
    let (begun, before) = (Instant::now(), issuer.asked());
    for round in 0..200 {
        assert_eq!(ask(&server, &ed.sign(Some(&format!("invented-{round}")), &claims())).await, 401);
    }
    let most = begun.elapsed().as_secs() / PAUSE.as_secs() + 2;
    assert!(issuer.asked() - before <= usize::try_from(most).unwrap(), "{} fetches", issuer.asked() - before);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_of_a_token_looks_the_same() {
    let (authority, database) = (Authority::new(), Database::create().await);
    let issuer = Issuer::start(&authority.issue("IP:127.0.0.1")).await;
    let ([rsa, ec, ed], others) = (Signer::trusted(), Signer::others());
    issuer.publish(&[("rsa", &rsa), ("ec", &ec)]);
    let mut setup = setup(&database, &issuer.url, &authority).await;
    let pem = include_str!("../keys/ed.pub.pem");
    let file = setup.folder.path().join("keys.pem");
    std::fs::write(&file, pem).expect("write the key");
    setup.set("HEADSTART_AUTH_PUBLIC_KEYS_FILE", file.display().to_string());
    setup.set("HEADSTART_LOG_FILTER", "debug");
    let server = setup.serve().await;
    for (kid, signer) in [("rsa", &rsa), ("ec", &ec), ("ed", &ed)] {
        assert_eq!(ask(&server, &signer.sign(Some(kid), &claims())).await, 200, "{kid}");
    }

    let good = rsa.sign(Some("rsa"), &claims());
    let (message, signature) = good.rsplit_once('.').expect("a signature");
    let (_, body) = message.split_once('.').expect("a body");
    let confused = |public: &str| {
        Signer(Algorithm::HS256, EncodingKey::from_secret(public.as_bytes())).sign(Some("rsa"), &claims())
    };
    let twice = claims().to_string().replacen('{', "{\"org\":\"8\",", 1);
    let twice: Box<serde_json::value::RawValue> = serde_json::from_str(&twice).expect("JSON");
    let twice = jsonwebtoken::encode(&jsonwebtoken::Header::new(Algorithm::RS256), &twice, &rsa.1).expect("a token");
    let bad = [
        String::new(),
        "x".into(),
        // {"alg":"none"}
        format!("eyJhbGciOiJub25lIn0.{body}."),
        format!("eyJhbGciOiJub25lIn0.{body}.{signature}"),
        confused(pem),
        confused(include_str!("../keys/rsa.pub.pem")),
        others[0].sign(Some("rsa"), &claims()),
        others[1].sign(Some("ec"), &claims()),
        others[2].sign(None, &claims()),
        ec.sign(Some("rsa"), &claims()),
        rsa.sign(Some("elsewhere"), &claims()),
        message.to_owned(),
        good[..good.len() - 1].to_owned(),
        format!("{good}A"),
        rsa.sign(Some("rsa"), &with("padding", "x".repeat(20_000).into())),
        twice,
        rsa.sign(Some("rsa"), &with("exp", 1.into())),
        rsa.sign(Some("rsa"), &with("nbf", 4_000_000_000_u64.into())),
        rsa.sign(Some("rsa"), &with("aud", "other".into())),
        rsa.sign(Some("rsa"), &with("iss", "other".into())),
        rsa.sign(Some("rsa"), &with("org", Value::Null)),
        rsa.sign(Some("rsa"), &with("groups", "team:1".into())),
    ];
    let mut refusals = BTreeSet::new();
    for token in &bad {
        refusals.insert(refusal(&server, token).await);
    }
    assert_eq!(refusals.len(), 1, "{refusals:#?}");
    let log = server.log();
    let parts = bad.iter().flat_map(|token| token.split('.')).filter(|part| part.len() > 10);
    for part in parts {
        assert!(!log.contains(part), "no part of a token is logged: {part}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_that_answers_badly_changes_nothing_and_is_told() {
    let (authority, database) = (Authority::new(), Database::create().await);
    let issuer = Issuer::start(&authority.issue("IP:127.0.0.1")).await;
    let [rsa, ..] = Signer::trusted();
    issuer.publish(&[("rsa", &rsa)]);
    let mut setup = setup(&database, &issuer.url, &authority).await;
    setup.set("HEADSTART_AUTH_JWKS_PAUSE_S", "1").set("HEADSTART_AUTH_JWKS_REFRESH_S", "1");
    setup.set("HEADSTART_AUTH_JWKS_TIMEOUT_MS", "2000");
    let server = setup.serve().await;
    let good = rsa.sign(Some("rsa"), &claims());
    server.until("the keys are there", async || ask(&server, &good).await == 200).await;
    let failures = async || server.metric("headstart_key_set_failures_total").await;
    let set = json!({"keys": []}).to_string();
    let long = format!("{{\"keys\":[],\"padding\":\"{}\"}}", "x".repeat(300 << 10));
    let cut = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{}", set.len(), &set[..5]);
    let answers: [(&str, &dyn Fn()); 6] = [
        ("answered 302", &|| issuer.say("302 Found", set.as_bytes())),
        ("answered 500", &|| issuer.say("500 Internal Server Error", set.as_bytes())),
        ("it is no JWK Set", &|| issuer.say("200 OK", b"<html>")),
        ("longer than 262144 bytes", &|| issuer.say("200 OK", long.as_bytes())),
        ("no whole answer", &|| issuer.set(Answer::Raw(cut.clone().into_bytes()))),
        ("no answer within 2s", &|| issuer.set(Answer::Silence)),
    ];
    for (told, answer) in answers {
        let before = failures().await;
        answer();
        server.until(told, async || server.log().contains(told)).await;
        assert!(failures().await > before, "{told}");
        assert_eq!(ask(&server, &good).await, 200, "{told}");
    }
    issuer.say("200 OK", set.as_bytes());
    server.until("the key is taken back", async || ask(&server, &good).await == 401).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_named_host_can_say_who_is_let_in() {
    let (authority, stranger, database) = (Authority::new(), Authority::new(), Database::create().await);
    let [rsa, ..] = Signer::trusted();
    let token = rsa.sign(Some("rsa"), &claims());
    for (issued, told) in [
        (stranger.issue("IP:127.0.0.1"), "UnknownIssuer"),
        (authority.issue("DNS:login.example"), "not valid for name"),
    ] {
        let issuer = Issuer::start(&issued).await;
        issuer.publish(&[("rsa", &rsa)]);
        let database = Database::create().await;
        let setup = setup(&database, &issuer.url, &authority).await;
        let server = setup.serve().await;
        assert_eq!(ask(&server, &token).await, 503);
        assert_eq!(issuer.asked(), 0, "nothing is asked of a host that is not the named one");
        assert!(server.log().contains(told), "{told}");
        let checked = setup.run(&["check"]);
        assert_eq!(checked.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&checked.stdout).contains("auth.jwks_url"));
    }
    let mut plain = setup(&database, "http://login.example/keys", &authority).await;
    let refused = plain.run(&["serve"]);
    assert_eq!(refused.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("plain http"));
    plain.set("HEADSTART_AUTH_JWKS_URL", "");
    plain.set("HEADSTART_AUTH_PUBLIC_KEYS", include_str!("../keys/rsa.pem"));
    let refused = plain.run(&["serve"]);
    assert_eq!(refused.status.code(), Some(3));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("private key") && !said.contains("BEGIN"), "{said}");
}
