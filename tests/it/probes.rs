//! What probes and Prometheus ask on the operators' listener, with and without a token.

use serde_json::{Value, json};

use crate::support::operators::Operators;
use crate::support::world::World;

#[tokio::test]
async fn operators_see_what_is_down() {
    let operators = Operators::new(World::new()).await;
    let get = async |path: &str| {
        let answer = operators.request("GET", path).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    assert_eq!(get("/livez").await, (200, "ok\n".into()));
    let (status, metrics) = get("/metrics").await;
    assert!(status == 200 && metrics.contains("headstart_dumps_started_total 0") && metrics.ends_with("# EOF\n"));
    let (status, body) = get("/readyz").await;
    let ready: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &ready["status"], &ready["parts"][0]["name"]), (200, &json!("ok"), &json!("database")));
    operators.world.source.switch_off(true);
    let (status, body) = get("/readyz").await;
    let down: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &down["status"], &down["parts"][0]["status"]), (503, &json!("down"), &json!("down")));
    assert_eq!(get("/livez").await.0, 200, "the process itself is well");
}

#[tokio::test]
async fn with_a_token_only_operators_see_more_than_whether_it_lives() {
    let token = "o".repeat(32);
    let operators = Operators::with(World::new(), Some(&token)).await;
    let get = async |path: &str, user: Option<&str>, token: &str| {
        let request = operators.request("GET", path);
        let request = match user {
            Some(user) => request.basic_auth(user, Some(token)),
            None => request.bearer_auth(token),
        };
        let answer = request.send().await.unwrap();
        let challenges = answer.headers().get_all("www-authenticate").iter().count();
        (answer.status().as_u16(), challenges, answer.text().await.unwrap())
    };
    let refused = get("/metrics", None, "").await;
    assert_eq!((refused.0, refused.1), (401, 2), "programs and browsers are told how");
    for wrong in ["nonsense", &token[1..], &token.to_uppercase()] {
        assert_eq!(get("/metrics", None, wrong).await, refused);
        assert_eq!(get("/metrics", Some("ann"), wrong).await, refused);
    }
    assert_eq!(get("/nothing", None, "").await.0, 404);
    for user in [None, Some("ann")] {
        let (status, _, metrics) = get("/metrics", user, &token).await;
        assert!(status == 200 && metrics.ends_with("# EOF\n"));
        assert!(get("/readyz", user, &token).await.2.contains("\"database\""));
    }
    assert_eq!(get("/livez", None, "").await.0, 200);
    assert_eq!(get("/readyz", None, "").await.2, "{\"status\":\"ok\"}");
    operators.world.source.switch_off(true);
    let (status, _, body) = get("/readyz", None, "").await;
    assert_eq!((status, &*body), (503, "{\"status\":\"down\"}"));
}
