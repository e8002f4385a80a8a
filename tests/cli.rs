//! The program as people and scripts see it: text, JSON and exit codes.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn postroad(directory: &Path, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_postroad"))
        .args(arguments)
        .current_dir(directory)
        .env_remove("POSTROAD_CONFIG")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    // It may end without reading its input.
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    child.wait_with_output().expect("the program ends")
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("not killed")
}

#[test]
fn check_says_what_a_configuration_means() {
    let directory = tempfile::tempdir().expect("scratch");
    let text = "hostname = \"mx.example.org\"\nstate_dir = \"state\"\n[listen]\nsmtp = [\"0.0.0.0:25\"]\n\
                [[local]]\ndomain = \"example.org\"\nmaildir = \"mail/{user}\"\n\
                [[route]]\ndomain = \"*\"\nvia = \"smtp.isp.example:587\"\nuser = \"relay\"\npassword_file = \"none\"\n\
                [[route]]\ndomain = \"example.com\"\nvia = \"mx\"\naccept = [\"sales\", \"alice\"]\n\
                [[route]]\ndomain = \".example.com\"\nvia = \"mx\"\naccept = \"any\"\n";
    std::fs::write(directory.path().join("p.toml"), text).expect("written");
    let output = postroad(directory.path(), &["check", "--config", "p.toml"], "");
    let base = directory.path().canonicalize().expect("exists");
    let shown = out(&output).replace(base.to_str().expect("UTF-8"), "BASE");
    let want = "\
p.toml: valid
  hostname     mx.example.org
  listens on   0.0.0.0:25 (smtp)
  relays for   127.0.0.0/8, ::1/128; and whoever logs in
  local        example.org -> BASE/mail/{user} (users with a directory)
  route        * -> smtp.isp.example:587 (TLS verify, as relay)
  route        example.com -> mx (TLS opportunistic), from everybody: 2 recipients
  route        .example.com -> mx (TLS opportunistic), from everybody: any recipient
  postmaster   postmaster@example.org
  messages     up to 50 MB
  to each site up to 20 connections
  retries      what is put off is tried again after 5m, 10m and so on up to 4h; the sender hears of it after 4h; it is returned after 5d
  state        BASE/state
";
    assert_eq!((code(&output), shown.as_str()), (0, want), "{}", err(&output));
    let warnings = err(&output);
    assert!(warnings.contains("password file") && warnings.contains("no directory"), "{warnings}");
    assert!(!warnings.contains('\u{1b}'), "no colours in a pipe");
    let json = postroad(directory.path(), &["check", "--json", "--config", "p.toml"], "");
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(json["valid"], true);
    let accepted: Vec<String> = (0..3).map(|n| json["routes"][n]["accept"].to_string()).collect();
    assert_eq!(accepted, ["null", "[\"alice\",\"sales\"]", "\"any\""]);
    assert_eq!(json["warnings"].as_array().map(Vec::len), Some(2));
}

#[test]
fn a_wrong_configuration_is_shown_with_its_lines_and_78() {
    let directory = tempfile::tempdir().expect("scratch");
    std::fs::write(directory.path().join("p.toml"), "hostnam = \"a\"\n[queue]\nexpire = \"never\"\n").expect("written");
    let output = postroad(directory.path(), &["check", "--config", "p.toml"], "");
    assert_eq!((code(&output), out(&output).as_str()), (78, ""));
    let text = err(&output);
    for part in ["p.toml:1:1", "did you mean `hostname`?", "p.toml:3:10", "error: p.toml: 2 faults"] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    let output = postroad(directory.path(), &["check", "--config", "p.toml", "--json"], "");
    let json: serde_json::Value = serde_json::from_slice(&output.stderr).expect("JSON");
    assert_eq!((code(&output), &json["error"]["faults"][1]["line"]), (78, &serde_json::json!(3)));
}

#[test]
fn a_file_that_was_named_must_exist() {
    let directory = tempfile::tempdir().expect("scratch");
    let output = postroad(directory.path(), &["check", "--config", "missing.toml"], "");
    assert_eq!(code(&output), 78, "{}", err(&output));
    assert!(err(&output).contains("missing.toml"), "{}", err(&output));
}

#[test]
fn users_come_and_go() {
    let directory = tempfile::tempdir().expect("scratch");
    let user = |arguments: &[&str], input: &str| {
        postroad(directory.path(), &[&["user", "--file", "users"], arguments].concat(), input)
    };
    let added = user(&["add", "Alice@example.org"], "secret\n");
    let want = "added alice@example.org, who may send as alice@example.org\n";
    assert_eq!((code(&added), out(&added).as_str()), (0, want), "{}", err(&added));
    let mode = std::fs::metadata(directory.path().join("users")).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let text = std::fs::read_to_string(directory.path().join("users")).expect("readable");
    assert!(text.starts_with("alice@example.org:$argon2id$") && !text.contains("secret"), "{text}");

    assert_eq!(code(&user(&["check", "alice@example.org"], "secret\n")), 0);
    assert_eq!(code(&user(&["check", "alice@example.org"], "wrong\n")), 1);
    assert_eq!(code(&user(&["add", "alice@example.org"], "other\n")), 1, "nobody is replaced by accident");
    assert_eq!(code(&user(&["add", "alice@example.org", "--replace"], "other\n")), 0);
    assert_eq!(code(&user(&["check", "alice@example.org"], "other\n")), 0);

    let nameless = user(&["add", "app"], "x\n");
    assert!(code(&nameless) == 1 && err(&nameless).contains("--address"), "{}", err(&nameless));
    assert_eq!(code(&user(&["add", "app", "--address", "@example.org", "--address", "x@y.example"], "x\n")), 0);
    assert_eq!(code(&user(&["add", "empty", "--address", "*"], "\n")), 1);
    assert_eq!(code(&user(&["add", "a:b", "--address", "*"], "x\n")), 1);
    assert_eq!(code(&user(&["add", "bad", "--address", "no address"], "x\n")), 2);

    let list = "alice@example.org  alice@example.org\napp                @example.org, x@y.example\n";
    assert_eq!(out(&user(&["list"], "")), list);
    let json: serde_json::Value = serde_json::from_slice(&user(&["list", "--json"], "").stdout).expect("JSON");
    assert_eq!(json[1], serde_json::json!({ "name": "app", "addresses": ["@example.org", "x@y.example"] }));
    assert_eq!(out(&user(&["remove", "app", "--json"], "")), "{\"removed\":\"app\"}\n");
    assert_eq!(code(&user(&["remove", "app"], "")), 1);
}

#[test]
fn completions_and_manual_pages_are_made() {
    let directory = tempfile::tempdir().expect("scratch");
    for shell in ["bash", "zsh", "fish"] {
        let output = postroad(directory.path(), &["completions", shell], "");
        assert!(code(&output) == 0 && out(&output).contains("postroad"), "{shell}");
    }
    assert_eq!(code(&postroad(directory.path(), &["man", "man1"], "")), 0);
    let page = std::fs::read_to_string(directory.path().join("man1/postroad-user-add.1")).expect("written");
    assert!(page.contains("users file"), "{page}");
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_postroad"))
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("the program ends");
    assert_eq!((code(&output), err(&output).as_str()), (0, ""));
}

/// Writes `NAME.pem` and `NAME.key`, good from one year on to another, and returns a configuration with them.
fn with_certificate(directory: &Path, name: &str, host: &str, years: (i32, i32)) -> String {
    let mut params = rcgen::CertificateParams::new(vec![host.to_owned()]).expect("a name");
    params.not_before = rcgen::date_time_ymd(years.0, 1, 1);
    params.not_after = rcgen::date_time_ymd(years.1, 1, 1);
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = params.self_signed(&key).expect("a certificate");
    std::fs::write(directory.join(format!("{name}.pem")), certificate.pem()).expect("written");
    std::fs::write(directory.join(format!("{name}.key")), key.serialize_pem()).expect("written");
    format!("hostname = \"mx.example.org\"\n[tls]\ncertificate = \"{name}.pem\"\nkey = \"{name}.key\"\n")
}

#[test]
fn check_looks_at_the_certificate_as_clients_will() {
    let directory = tempfile::tempdir().expect("scratch");
    let check = |text: &str| {
        std::fs::write(directory.path().join("p.toml"), text).expect("written");
        postroad(directory.path(), &["check", "--config", "p.toml"], "")
    };
    let good = with_certificate(directory.path(), "good", "mx.example.org", (2020, 2100));
    let output = check(&good);
    assert_eq!((code(&output), err(&output).contains("certificate")), (0, false), "{}", err(&output));
    for (name, host, years, what) in [
        ("old", "mx.example.org", (2020, 2021), "its time is over"),
        ("early", "mx.example.org", (2100, 2101), "its time has not begun"),
        ("other", "mail.example.org", (2020, 2100), "does not name mx.example.org"),
    ] {
        let output = check(&with_certificate(directory.path(), name, host, years));
        assert_eq!((code(&output), err(&output).contains(what)), (0, true), "{name}: {}", err(&output));
    }
    let output = check(&good.replace("good.key", "other.key"));
    assert_eq!((code(&output), err(&output).contains("does not belong")), (78, true), "{}", err(&output));
}
