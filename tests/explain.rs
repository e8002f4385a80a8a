//! `postroad explain` as people and scripts see it, against a name server on loopback.

use std::path::Path;

use postroad::dns_zone::{NameServer, Zone};
use serde_json::Value;
use tokio::process::Command;

struct Site {
    directory: tempfile::TempDir,
    /// Kept, because it stops when it is dropped.
    _server: NameServer,
}

impl Site {
    async fn new() -> Site {
        let ip = |text: &str| text.parse().expect(text);
        let zone = Zone::new()
            .mx("d.test", 10, "first.test")
            .mx("d.test", 20, "second.test")
            .address("first.test", ip("192.0.2.1"))
            .address("second.test", ip("127.0.0.1"))
            .null_mx("null.test")
            .servfail("sick.test");
        let server = NameServer::start("127.0.0.1:0".parse().expect("valid"), zone).await.expect("loopback");
        let directory = tempfile::tempdir().expect("a scratch directory");
        let text = format!(
            "hostname = \"me.test\"\n[dns]\nservers = [\"{}\"]\ntimeout = \"10s\"\n[[route]]\ndomain = \".corp.test\"\n\
             via = \"mx\"\ntls = \"verify\"\n",
            server.addr()
        );
        std::fs::write(directory.path().join("postroad.toml"), text).expect("written");
        Site { directory, _server: server }
    }

    async fn explain(&self, arguments: &[&str]) -> (i32, String, String) {
        let file: &Path = &self.directory.path().join("postroad.toml");
        let output = Command::new(env!("CARGO_BIN_EXE_postroad"))
            .arg("explain")
            .args(arguments)
            .env("POSTROAD_CONFIG", file)
            .output()
            .await
            .expect("the program runs");
        let text = |octets: Vec<u8>| String::from_utf8(octets).expect("UTF-8");
        (output.status.code().expect("not killed"), text(output.stdout), text(output.stderr))
    }
}

#[tokio::test]
async fn text_tells_the_whole_way() {
    let (code, out, err) = Site::new().await.explain(&["u@d.test"]).await;
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(
        out,
        "<u@d.test>\n  \
         no route matches: the next hop is found by MX\n  \
         destination mx:d.test\n  \
         d.test MX 10 first.test., 20 second.test.\n  \
         first.test has 192.0.2.1\n  \
         second.test has 127.0.0.1\n  \
         127.0.0.1 dropped: a loopback address out of DNS (see outbound.allow_loopback)\n  \
         hop first.test 192.0.2.1:25, TLS opportunistic\n  \
         what is put off is tried again after 5m, 10m and so on up to 4h; the sender hears of it after 4h; \
         it is returned after 5d\n\
         => relayed to this hop\n"
    );
}

#[tokio::test]
async fn json_is_one_object_a_line_with_the_same_steps() {
    let (code, out, _) = Site::new().await.explain(&["--json", "u@d.test", "u@null.test"]).await;
    let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert_eq!((code, lines.len()), (1, 2));
    assert_eq!(lines[0]["outcome"]["kind"], "relayed");
    assert_eq!(lines[0]["outcome"]["hops"], 1);
    let hop = lines[0]["steps"].as_array().and_then(|steps| steps.last()).expect("steps");
    assert_eq!((&hop["step"], &hop["address"]), (&Value::from("hop"), &Value::from("192.0.2.1:25")));
    assert_eq!(lines[1]["outcome"]["reply"], "556 5.1.10 null.test does not accept mail (null MX)");
}

#[tokio::test]
async fn the_exit_code_tells_never_from_later() {
    let site = Site::new().await;
    for (address, want) in [("u@d.test", 0), ("u@null.test", 1), ("u@nowhere.test", 1), ("u@sick.test", 75), ("u@", 2)]
    {
        let (code, out, err) = site.explain(&[address]).await;
        assert_eq!(code, want, "{address}\n{out}{err}");
        assert_eq!(err.is_empty(), want == 0, "{address}: {err}");
    }
}
