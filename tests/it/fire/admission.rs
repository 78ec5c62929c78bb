//! Who is let in: past the bounds a refusal at once, whatever state the database is in, and room for the other orgs.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use reqwest::{RequestBuilder, StatusCode};
use tokio::task::JoinHandle;

use super::{proxied, retry_after};
use crate::support::proxy::{Mode, Proxy};
use crate::support::server::{Server, Setup};
use crate::support::studio;

/// What a refusal takes at most; a request that asks the database here waits for ever.
const AT_ONCE: Duration = Duration::from_secs(1);

/// A kind of request with its bounds: of the process and of an org.
const KINDS: [(&str, usize, usize); 3] = [("stream", 6, 4), ("delta", 3, 2), ("batch", 3, 2)];

fn request(server: &Server, kind: &str, token: &str) -> RequestBuilder {
    match kind {
        "stream" => server.get("/sync/bootstrap", token),
        "delta" => server.get("/sync/delta?lastSyncId=0&epoch=e", token),
        _ => {
            let body = r#"{"requests":[{"modelName":"Workspace","id":"7"}]}"#;
            let post = server.client.post(format!("{}/sync/batch", server.base)).bearer_auth(token);
            post.header("content-type", "application/json").body(body)
        }
    }
}

async fn until_in_progress(server: &Server, kind: &str, count: usize) {
    let series = format!("headstart_in_progress{{kind=\"{kind}\"}}");
    server.until(&series, async || server.metric(&series).await == count as f64).await;
}

/// A service whose database has stopped answering, and tokens of two orgs. Its folder is there for as long as the setup is.
async fn stalled(changes: impl Fn(&mut Setup)) -> (Setup, Server, Proxy, [String; 2]) {
    let (database, _client, mut setup) = studio::with_log(1, studio::CATALOG).await;
    let tokens = [setup.token("7", "ann", None), setup.token("8", "ann", None)];
    let proxy = proxied(&database, &mut setup).await;
    for (kind, process, org) in KINDS {
        let plural = if kind == "batch" { "BATCHES".to_owned() } else { format!("{}S", kind.to_uppercase()) };
        setup.set(&format!("HEADSTART_ADMISSION_{plural}"), process.to_string());
        setup.set(&format!("HEADSTART_ADMISSION_ORG_{plural}"), org.to_string());
    }
    changes(&mut setup);
    let server = setup.serve().await;
    proxy.set(Mode::StallAfter(0));
    (setup, server, proxy, tokens)
}

#[tokio::test(flavor = "multi_thread")]
async fn past_the_bounds_requests_are_refused_at_once_and_no_org_starves_another() {
    let long = |setup: &mut Setup| {
        for setting in ["POSTGRES_ACQUIRE_TIMEOUT_MS", "BATCH_DEADLINE_MS"] {
            setup.set(&format!("HEADSTART_{setting}"), "600000");
        }
    };
    let (_setup, server, proxy, [seven, eight]) = stalled(long).await;
    let mut waiting: Vec<JoinHandle<reqwest::Result<reqwest::Response>>> = Vec::new();
    for (kind, process, org) in KINDS {
        waiting.extend((0..org).map(|_| tokio::spawn(request(&server, kind, &seven).send())));
        until_in_progress(&server, kind, org).await;
        let refused = |token: &str| {
            let request = request(&server, kind, token);
            async move {
                let asked = Instant::now();
                let answer = request.send().await.expect("an answer");
                assert!(asked.elapsed() < AT_ONCE, "{kind}: {:?}", asked.elapsed());
                let (status, seconds) = (answer.status(), retry_after(&answer));
                assert!((2..=6).contains(&seconds), "{seconds}");
                (status, seconds, answer.text().await.expect("a body"))
            }
        };
        let (status, _, body) = refused(&seven).await;
        assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{kind}: {body}");
        assert!(body.contains("\"TOO_MANY_REQUESTS\""), "{body}");

        // The other org gets what is left of the process's places.
        waiting.extend((org..process).map(|_| tokio::spawn(request(&server, kind, &eight).send())));
        until_in_progress(&server, kind, process).await;
        let crowd = join_all((0..20).map(|_| refused(&eight))).await;
        for (status, _, body) in &crowd {
            assert_eq!(*status, StatusCode::SERVICE_UNAVAILABLE, "{kind}: {body}");
            assert!(body.contains("\"OVERLOADED\""), "{body}");
        }
        assert!(crowd.iter().any(|(_, seconds, _)| *seconds != crowd[0].1), "they don't come back together");
        for (scope, count) in [("org", 1.0), ("process", 20.0)] {
            let series = format!("headstart_refused_total{{kind=\"{kind}\",scope=\"{scope}\"}}");
            assert_eq!(server.metric(&series).await, count, "{series}");
        }
    }
    // Clients that go away give their places back, though the database still does not answer.
    for task in waiting {
        task.abort();
    }
    for (kind, _, _) in KINDS {
        until_in_progress(&server, kind, 0).await;
    }
    proxy.set(Mode::Cut);
    proxy.set(Mode::Pass);
    let served = async || request(&server, "stream", &seven).send().await.expect("an answer").status() == 200;
    server.until("the database answers again", served).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_have_a_deadline() {
    let short = |setup: &mut Setup| {
        setup.set("HEADSTART_HTTP_BEGIN_DEADLINE_S", "1");
    };
    let (_setup, server, _proxy, [seven, _]) = stalled(short).await;
    for (kind, _, _) in KINDS {
        let asked = Instant::now();
        let answer = request(&server, kind, &seven).send().await.expect("an answer");
        let took = asked.elapsed();
        assert_eq!(answer.status(), 503, "{kind}");
        assert!((Duration::from_millis(900)..Duration::from_secs(4)).contains(&took), "{kind}: {took:?}");
        assert!((2..=6).contains(&retry_after(&answer)));
        until_in_progress(&server, kind, 0).await;
    }
}
