//! Which rule decides for an address, and what it says.

use std::path::Path;

use super::*;

const TEXT: &str = r#"
hostname = "me.example"
postmaster = "admin@home.example"
[listen]
smtp = ["192.0.2.1:25"]
[[local]]
domain = "home.example"
maildir = "/m/{user}"
[[route]]
domain = "corp.example"
via = "mx"
tls = "verify"
[[route]]
domain = ".corp.example"
via = "[192.0.2.9]:2525"
[[route]]
domain = ".deep.corp.example"
via = "relay.example:587"
user = "alice"
password_file = "p"
[[turn]]
user = "Branch"
domains = ["branch.corp.example", "kept.example"]
expire = "14d"
"#;

fn router(text: &str) -> Router {
    Router::new(&Config::from_str(text, "test", Path::new("/etc")).unwrap_or_else(|faults| panic!("{faults}")))
}

fn shown(router: &Router, path: &str) -> String {
    match router.route(&path.parse().expect(path)) {
        Route::Local(hop) => hop.key().to_string(),
        Route::Smtp(hop) => hop.key().to_string(),
        Route::Turn(hop) => hop.key().to_string(),
        Route::Refused(reply) => reply.to_string()[..9].to_owned(),
    }
}

#[test]
fn the_most_specific_rule_decides() {
    let router = router(TEXT);
    for (path, want) in [
        ("u@home.example", "local:home.example"),
        ("u@HOME.example.", "local:home.example"),
        ("u@sub.home.example", "mx:sub.home.example"),
        ("u@corp.example", "mx:corp.example/verify"),
        ("u@a.corp.example", "host:192.0.2.9:2525"),
        ("u@deep.corp.example", "host:192.0.2.9:2525"),
        ("u@x.y.deep.corp.example", "host:alice@relay.example:587/verify"),
        ("u@notcorp.example", "mx:notcorp.example"),
        ("u@Branch.corp.example", "turn:branch/branch.corp.example"),
        ("u@kept.example", "turn:branch/kept.example"),
        ("u@sub.kept.example", "mx:sub.kept.example"),
        ("@a.example:u@b.example", "mx:b.example"),
        ("u%home.example@b.example", "mx:b.example"),
        ("\"u@home.example\"@b.example", "mx:b.example"),
        ("postmaster", "local:home.example"),
        ("Postmaster@me.example", "local:home.example"),
        ("root@me.example", "mx:me.example"),
    ] {
        assert_eq!(shown(&router, path), want, "{path}");
    }
}

#[test]
fn literals_never_lead_home_or_nowhere() {
    let rules = router(TEXT);
    for (path, want) in [
        ("u@[192.0.2.1]", "550 5.1.1"),
        ("u@[IPv6:::ffff:192.0.2.1]", "550 5.1.1"),
        ("postmaster@[192.0.2.1]", "local:home.example"),
        ("u@[127.0.0.1]", "550 5.1.1"),
        ("u@[0.0.0.0]", "550 5.1.2"),
        ("u@[IPv6:ff02::1]", "550 5.1.2"),
        ("u@[192.0.2.2]", "host:192.0.2.2:25"),
        ("u@[IPv6:2001:db8::1]", "host:[2001:db8::1]:25"),
    ] {
        assert_eq!(shown(&rules, path), want, "{path}");
    }
    let smarthost = router("[[route]]\ndomain = \"*\"\nvia = \"isp.example:25\"");
    assert_eq!(shown(&smarthost, "u@[192.0.2.2]"), "host:isp.example:25");
    assert_eq!(shown(&smarthost, "u@[IPv6:::1]"), "550 5.1.1");
}

#[test]
fn without_a_postmaster_and_local_domains_the_sender_hears_what_is_missing() {
    assert_eq!(shown(&router("hostname = \"me.example\""), "postmaster"), "550 5.1.1");
}

#[test]
fn the_postmaster_is_a_mailbox() {
    let router = router(TEXT);
    let target = |text: &str| router.target(&text.parse().expect(text)).to_string();
    assert_eq!(target("postmaster"), "<admin@home.example>");
    assert_eq!(target("postmaster@[192.0.2.1]"), "<admin@home.example>");
    assert_eq!(target("Postmaster@home.example"), "<admin@home.example>");
    assert_eq!(target("u@me.example"), "<u@me.example>");
}

proptest::proptest! {
    /// The look-up by hash and the definition, which the configuration has, are one rule.
    #[test]
    fn the_rule_found_is_the_one_the_configuration_defines(
        patterns in proptest::collection::btree_set("[.]?[ab]([.][ab]){0,3}|[*]", 0..12), domain in "[ab]([.][ab]){0,4}",
    ) {
        let entry = |(n, pattern): (usize, &String)| format!("[[route]]\ndomain = \"{pattern}\"\nvia = \"h{n}.example:25\"\n");
        let text: String = patterns.iter().enumerate().map(entry).collect();
        let config = Config::from_str(&text, "test", Path::new("/etc")).expect("no pattern stands twice");
        let domain: Domain = domain.parse().expect("a domain");
        let want = config.route(&domain).map_or(format!("mx:{domain}"), |route| format!("host:{}", route.via));
        proptest::prop_assert_eq!(shown(&Router::new(&config), &format!("u@{domain}")), want);
    }
}

#[test]
fn the_recorder_names_the_line() {
    let mut recorder = Recorder::on();
    router(TEXT).route_recorded(&"u@a.corp.example".parse().expect("valid"), &mut recorder);
    let shown: Vec<String> = recorder.into_steps().iter().map(Step::to_string).collect();
    assert_eq!(
        shown,
        [
            "route \".corp.example\" matches: via [192.0.2.9]:2525 (TLS opportunistic) (configuration line 14)",
            "destination host:192.0.2.9:2525"
        ]
    );
}
