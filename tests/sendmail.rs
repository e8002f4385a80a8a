//! The programs of a host hand in mail as they do to every MTA: by `sendmail`, with an agent that runs and with
//! none. What they really say stands here, and what somebody hostile might.

mod support;

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use support::agent::{Agent, Builder, POSTROAD, has_program, is_root, make_maildir};
use support::net::{SOON, wait_until};
use support::sink::{Message, Sink};
use support::skip;

const LETTER: &str = "Subject: x\n\nbody\n";

/// An agent whose mail all goes to a sink.
struct Host {
    agent: Agent,
    sink: Sink,
}

impl Host {
    fn new() -> Host {
        let sink = Sink::new();
        Host { agent: Builder::new().route("*", sink.address()).build(), sink }
    }

    fn running() -> Host {
        let mut host = Host::new();
        host.agent.start();
        host
    }

    /// The program under the name of its trade; `words` are its arguments.
    fn command(&self, name: &str, words: &[&str]) -> Command {
        let link = self.agent.path(name);
        if !link.exists() {
            symlink(POSTROAD, &link).expect("linked");
        }
        let mut command = Command::new(link);
        command.arg("-C").arg(self.agent.config_path()).args(words);
        command
    }

    fn sendmail(&self, words: &[&str], input: &str) -> Output {
        give(self.command("sendmail", words), input)
    }

    /// Hands in what has to be taken.
    #[track_caller]
    fn takes(&self, words: &[&str], input: &str) {
        let output = self.sendmail(words, input);
        assert!(output.status.success(), "sendmail {words:?}: {}: {}", output.status, words_of(&output));
        assert!(output.stdout.is_empty() && output.stderr.is_empty(), "it is silent: {}", words_of(&output));
    }

    fn one(&self) -> Message {
        self.sink.expect(1, SOON).remove(0)
    }

    fn drops(&self) -> Vec<PathBuf> {
        self.files("drop")
    }

    fn files(&self, name: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.agent.path("state/local").join(name)).into_iter().flatten();
        entries.map(|entry| entry.expect("readable").path()).collect()
    }
}

fn give(mut command: Command, input: &str) -> Output {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary runs");
    // One that has heard enough does not read the rest.
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    child.wait_with_output().expect("it ends")
}

fn words_of(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

fn content(message: &Message) -> String {
    String::from_utf8(message.content.clone()).expect("text")
}

/// The login name of whoever runs the tests, as the program sees it.
fn login() -> String {
    let id = Command::new("id").arg("-un").output().expect("id runs");
    String::from_utf8_lossy(&id.stdout).trim().to_owned()
}

fn uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[test]
fn the_programs_of_a_host_hand_in_mail_as_ever() {
    let host = Host::running();
    let login = login();
    // cron: Debian's and cronie's.
    let cron = "From: root (Cron Daemon)\nTo: root\nSubject: Cron <root@web1> backup\nMIME-Version: 1.0\n\
                Content-Type: text/plain; charset=UTF-8\nX-Cron-Env: <SHELL=/bin/sh>\n\n10%\r20%\rdone\n.\n\u{fc}\n";
    host.takes(&["-i", "-FCronDaemon", "-B8BITMIME", "-oem", "root"], cron);
    let message = host.one();
    assert_eq!(message.recipients, ["root@mx.test"]);
    assert_eq!(message.reverse_path, format!("{login}@mx.test"));
    let text = content(&message);
    assert!(text.starts_with("Received: by mx.test with local (uid "), "{text}");
    assert!(text.contains(&format!("(uid {}) id ", uid())), "{text}");
    assert!(text.contains("\r\nFrom: root@mx.test (Cron Daemon)\r\nTo: root@mx.test\r\n"), "{text}");
    assert!(text.contains("\r\nMessage-ID: <") && text.contains("\r\nDate: "), "{text}");
    assert!(text.ends_with("\r\n\r\n10%\r\n20%\r\ndone\r\n.\r\n\u{fc}\r\n"), "{text}");
    host.sink.forget();

    // mdadm and smartd.
    let mdadm = "From: mdadm monitoring <root>\nTo: admin@example.org\nSubject: DegradedArray\n\nFaithfully yours\n";
    host.takes(&["-t"], mdadm);
    let text = content(&host.one());
    assert!(text.contains("\r\nFrom: mdadm monitoring <root@mx.test>\r\nTo: admin@example.org\r\n"), "{text}");
    host.sink.forget();

    // sudo.
    let sudo = "To: root\nFrom: bob\nAuto-Submitted: auto-generated\nSubject: *** SECURITY ***\n\nweb1\n";
    host.takes(&["-t"], sudo);
    assert_eq!(host.one().recipients, ["root@mx.test"]);
    host.sink.forget();

    // git send-email.
    let git = "From: A <a@dev.example>\nTo: list@dev.example\nCc: b@dev.example\nSubject: [PATCH] x\n\n---\n x\n";
    host.takes(&["-f", "a@dev.example", "-i", "list@dev.example", "b@dev.example"], git);
    let message = host.one();
    assert_eq!((&*message.reverse_path, message.recipients.len()), ("a@dev.example", 2));
    host.sink.forget();

    // mutt and php.
    host.takes(&["-oem", "-oi", "-f", "a@dev.example", "--", "c@dev.example"], "From: a@dev.example\n\n.\n");
    assert!(content(&host.one()).ends_with("\r\n\r\n.\r\n"));
    host.sink.forget();
    let php = "To: c@dev.example\nSubject: form\nBcc: hidden@dev.example, c@dev.example\n\nx";
    host.takes(&["-t", "-i"], php);
    let message = host.one();
    assert_eq!(message.recipients, ["c@dev.example", "hidden@dev.example"]);
    assert!(!content(&message).contains("hidden"), "{}", content(&message));
    host.agent.wait_logged(&format!("uid={}", uid()));
}

#[test]
fn what_is_asked_for_reaches_the_next_hop() {
    let host = Host::running();
    let dsn = ["-N", "success,delay", "-R", "hdrs", "-V", "job-7", "-f", "", "-F", "B\u{f6}", "a@x.example"];
    host.takes(&dsn, "Subject: x\n\nbody\n.\nlost\n");
    let message = host.one();
    assert_eq!(message.reverse_path, "");
    let (mail, rcpt) = (&message.mail_parameters, &message.rcpt_parameters[0]);
    assert!(mail.contains("RET=HDRS") && mail.contains("ENVID=job-7"), "{mail}");
    assert!(rcpt.contains("NOTIFY=SUCCESS,DELAY"), "{rcpt}");
    let text = content(&message);
    assert!(text.contains(&format!("\r\nFrom: =?utf-8?B?QsO2?= <{}@mx.test>\r\n", login())), "{text}");
    assert!(text.ends_with("\r\n\r\nbody\r\n"), "a lone dot ends it: {text}");
    host.sink.forget();
    let said = host.sendmail(&["-v", "a@x.example"], LETTER);
    assert!(words_of(&said).contains("a@x.example: 250 2.0.0 Accepted as "), "{}", words_of(&said));
    let shown = host.agent.ok(&["trace", "--json", "a@x.example"]);
    assert!(shown.contains("\"local\"") && shown.contains(&format!("uid {}", uid())), "{shown}");
}

#[test]
fn what_went_wrong_is_in_the_exit_code_and_said() {
    let sink = Sink::new();
    let builder = Builder::new().route("x.example", sink.address()).set("limits.message_size", "\"1MB\"");
    let local = "domain = \"local.test\"\nmaildir = \"mail/{user}\"\nrecipients = [\"alice\"]";
    let host = Host { agent: builder.table("local", local).start(), sink };
    let large = format!("Subject: x\n\n{}", "x".repeat(2_000_000));
    for (words, input, code, said) in [
        (&["-Z", "a@x.example"][..], LETTER, 64, "no option -Z"),
        (&["-X", "/tmp/log", "a@x.example"], LETTER, 64, "-X is not done"),
        (&["-bs"], "", 69, "speak SMTP"),
        (&[], LETTER, 64, "no recipients"),
        (&["-t"], LETTER, 64, "no recipients"),
        (&["a b"], LETTER, 65, "no list of addresses"),
        (&["-f", "a@@x", "a@x.example"], LETTER, 65, "no address to send from"),
        (&["a@x.example"], &large, 65, "5.3.4"),
        (&["nobody@local.test"], LETTER, 67, "nobody@local.test: 550 5.1.1"),
        (&["a@x.example", "nobody@local.test"], LETTER, 67, "nobody@local.test: 550 5.1.1"),
        (&["-C", "/nonexistent/file", "a@x.example"], LETTER, 78, "cannot be read"),
    ] {
        let output = host.sendmail(words, input);
        let text = words_of(&output);
        assert!(output.status.code() == Some(code) && text.contains(said), "{words:?}: {}: {text}", output.status);
    }
    assert_eq!(host.one().recipients, ["a@x.example"], "who is taken gets it");
    assert!(host.drops().is_empty());
}

#[test]
fn the_queue_is_shown_and_tried_again_under_the_names_of_the_trade() {
    let nowhere = ([127, 0, 0, 1], 9).into();
    let host = Host { agent: Builder::new().route("x.example", nowhere).start(), sink: Sink::new() };
    assert!(host.sendmail(&["-q"], "").status.success(), "nothing waits, and that is no fault");
    host.takes(&["a@x.example", "-f", "b@x.example"], LETTER);
    for (name, words) in [("mailq", &[][..]), ("sendmail", &["-bp"])] {
        let output = give(host.command(name, words), "");
        assert!(output.status.success() && words_of(&output).contains("b@x.example"), "{}", words_of(&output));
    }
    assert!(host.sendmail(&["-q"], "").status.success());
    let help = give(host.command("sendmail", &["--help"]), "");
    assert!(words_of(&help).contains("Exit codes"), "{}", words_of(&help));
}

#[test]
fn mail_is_kept_while_no_agent_runs() {
    let mut host = Host::new();
    let never = host.sendmail(&["a@x.example"], LETTER);
    assert_eq!(never.status.code(), Some(73), "there never was an agent: {}", words_of(&never));
    host.agent.start();
    let drop = host.agent.path("state/local/drop");
    assert_eq!(fs::metadata(&drop).expect("made").permissions().mode() & 0o7777, 0o1733);
    host.agent.kill();
    host.takes(&["-t"], "To: root, a@x.example\nSubject: first\n\nbody\n");
    // Whoever cannot be told now hears of it later.
    host.takes(&["-f", "b@x.example", "c@nodots"], "Subject: second\n\nbody\n");
    assert_eq!(host.drops().len(), 2);
    host.agent.start();
    let messages = host.sink.expect(2, SOON);
    let first = messages.iter().find(|message| content(message).contains("Subject: first")).expect("it came");
    assert_eq!(first.recipients, ["root@mx.test", "a@x.example"]);
    assert!(content(first).contains("To: root@mx.test, a@x.example\r\n"), "{}", content(first));
    assert!(content(first).starts_with(&format!("Received: by mx.test with local (uid {}) id ", uid())));
    wait_until("the drop directory is empty", SOON, || host.drops().is_empty());
    // One that is up is told by whoever could not reach it before.
    host.sink.forget();
    fs::rename(host.agent.path("state/local/socket"), host.agent.path("state/local/away")).expect("moved");
    host.takes(&["a@x.example"], LETTER);
    assert_eq!(host.drops().len(), 1, "nobody could be told");
    fs::rename(host.agent.path("state/local/away"), host.agent.path("state/local/socket")).expect("moved");
    host.takes(&["b@x.example"], LETTER);
    host.sink.expect(2, SOON);
    wait_until("the drop directory is empty", SOON, || host.drops().is_empty());
}

#[test]
fn what_somebody_hostile_puts_there_harms_nobody() {
    let mut host = Host::running();
    host.agent.kill();
    host.takes(&["a@x.example"], LETTER);
    let drop = host.agent.path("state/local/drop");
    fs::write(drop.join("mail.garbage"), vec![0xFF; 100_000]).expect("written");
    fs::write(drop.join("mail.torn"), "postroad-drop 1\n{\"user\":").expect("written");
    symlink("/etc/passwd", drop.join("mail.link")).expect("linked");
    fs::create_dir(drop.join("mail.directory")).expect("made");
    rustix::fs::mknodat(rustix::fs::CWD, drop.join("mail.fifo"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
        .expect("made");
    // An envelope of its own making: no command is smuggled in, and no line end.
    let slip = r#"{"user":"u","from":"a\r\nRCPT TO:<x@y>","name":null,"to":["a@x.example"],"notify":null,"headers_only":null,"envid":null,"eight_bit":false,"header_octets":2,"octets":2}"#;
    fs::write(drop.join("mail.lines"), format!("postroad-drop 1\n{slip}\n\r\n")).expect("written");
    let slip = slip.replace("a\\r\\nRCPT TO:<x@y>", "a@x.example").replace("\"octets\":2}", "\"octets\":25}");
    let smuggled = "\r\n.\nMAIL FROM:<evil>\r\n\n";
    fs::write(drop.join("mail.dots"), format!("postroad-drop 1\n{slip}\n\r\n{smuggled}")).expect("written");
    host.agent.start();
    assert_eq!(host.one().recipients, ["a@x.example"]);
    wait_until("all is set aside", SOON, || host.drops().is_empty());
    assert_eq!(host.files("set-aside").len(), 7);
    host.agent.wait_logged_times("it is set aside", 7);
    let log = host.agent.log();
    assert_eq!(log.matches("it is set aside").count(), 7, "{log}");
    assert!(!log.contains("panicked"), "{log}");
    host.takes(&["b@x.example"], LETTER);
    host.sink.expect(2, SOON);
}

#[test]
fn nothing_around_the_command_changes_what_it_does() {
    let host = Host::running();
    // An environment that lies, and one that is none.
    let mut hostile = host.command("sendmail", &["a@x.example"]);
    let vars =
        [("LOGNAME", "evil\nBcc: x"), ("USER", "evil"), ("HOME", "/nonexistent"), ("POSTROAD_CONFIG", "/etc/shadow")];
    hostile.env_clear().envs(vars).env(OsStr::from_bytes(b"\xFF"), OsStr::from_bytes(b"\xFE"));
    assert!(give(hostile, LETTER).status.success());
    assert_eq!(host.one().reverse_path, format!("{}@mx.test", login()));
    // Arguments that are no text, too many, or look like commands.
    let mut odd = host.command("sendmail", &[]);
    odd.arg(OsStr::from_bytes(b"a\xFF@x.example"));
    assert_eq!(give(odd, LETTER).status.code(), Some(64));
    // Names of mailboxes, and nothing else.
    host.takes(&["--", "|/bin/sh", "/etc/passwd", "-Z"], LETTER);
    let message = host.sink.expect(2, SOON).remove(1);
    assert_eq!(message.recipients, ["|/bin/sh@mx.test", "/etc/passwd@mx.test", "-Z@mx.test"]);
    assert_eq!(host.sendmail(&["a@x.example\rRCPT b@x.example"], LETTER).status.code(), Some(65));
    let many: Vec<String> = (0..1001).map(|n| format!("a{n}@x.example")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(host.sendmail(&many, LETTER).status.code(), Some(65));
    // Descriptors that are closed: no file that is opened later takes their places.
    host.sink.forget();
    let link = host.command("sendmail", &[]).get_program().to_owned();
    for closed in ["<&-", "<&- >&- 2>&-"] {
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(format!("exec \"$0\" \"$@\" {closed}"));
        shell.arg(&link).arg("-v").arg("-C").arg(host.agent.config_path()).arg("c@x.example");
        assert!(shell.status().expect("sh runs").success(), "{closed}");
    }
    for message in host.sink.expect(2, SOON) {
        assert!(!content(&message).contains("Accepted as"), "{}", content(&message));
    }
}

#[test]
fn any_user_may_hand_in_mail_and_sees_nothing_of_others() {
    if !is_root() || !has_program("setpriv") {
        return skip("needs root and setpriv");
    }
    let mut host = Host::running();
    let open = |path: PathBuf, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("ours");
    open(host.agent.path(""), 0o755);
    open(host.agent.config_path(), 0o644);
    // Where anybody may run it.
    fs::copy(POSTROAD, host.agent.path("postroad")).expect("copied");
    open(host.agent.path("postroad"), 0o755);
    let text = |name: &str| host.agent.path(name).display().to_string();
    let (program, config) = (text("postroad"), text("postroad.toml"));
    let (state, drop) = (text("state"), text("state/local/drop"));
    let send = |uid| give(as_user(uid, &[&program, "sendmail", "-C", &config, "a@x.example"]), LETTER);
    let taken = send(65533);
    assert!(taken.status.success(), "{}", words_of(&taken));
    let message = host.one();
    assert!(content(&message).contains("with local (uid 65533) id"), "{}", content(&message));
    host.sink.forget();
    assert!(host.agent.stop().success());
    let kept = send(65533);
    assert!(kept.status.success(), "{}", words_of(&kept));
    let dropped = host.drops().remove(0);
    for words in [&["ls", &*state][..], &["ls", &drop], &["rm", "-f", &dropped.display().to_string()]] {
        assert!(!give(as_user(65532, words), "").status.success(), "{words:?}");
    }
    assert!(dropped.exists());
    host.agent.start();
    assert!(content(&host.one()).contains("with local (uid 65533) id"));
}

fn as_user(uid: u32, words: &[&str]) -> Command {
    let uid = uid.to_string();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &uid, "--regid", &uid, "--clear-groups"]).args(words);
    command
}

#[test]
fn mail_for_root_goes_where_the_aliases_say() {
    let sink = Sink::new();
    let builder = Builder::new().route("*", sink.address()).set("aliases", "\"aliases\"");
    make_maildir(&builder.path("mail/alice"));
    fs::write(builder.path("aliases"), "root: admin@example.org, alice@local.test # not a comment there\n")
        .expect("written");
    let local = "domain = \"local.test\"\nmaildir = \"mail/{user}\"";
    let mut host = Host { agent: builder.table("local", local).build(), sink };
    let check = words_of(&host.agent.cli(&["check"]));
    assert!(check.contains("aliases:1:26: ") && check.contains("is no address"), "{check}");
    let aliases = host.agent.path("aliases");
    fs::write(&aliases, "root: admin@example.org, alice@local.test\nbob: root\n").expect("written");
    host.agent.start();
    host.takes(&["-t"], "To: root\nCc: admin@example.org, bob\nSubject: cron\n\nx\n");
    let message = host.one();
    assert_eq!(message.recipients, ["admin@example.org"], "one copy for each");
    assert!(content(&message).contains("To: root@mx.test\r\n"));
    let alice = host.agent.path("mail/alice/new");
    wait_until("alice has it", SOON, || fs::read_dir(&alice).is_ok_and(|files| files.count() == 1));
    host.sink.forget();
    host.takes(&["bob@local.test"], LETTER);
    let message = host.one();
    assert_eq!(message.recipients, ["admin@example.org"], "names of local domains as well");
    assert!(message.rcpt_parameters[0].contains("ORCPT=rfc822;bob@local.test"), "{:?}", message.rcpt_parameters);
    let shown = words_of(&host.agent.cli(&["explain", "root@mx.test"]));
    assert!(shown.contains("stands for admin@example.org, alice@local.test") && shown.contains("line 1"), "{shown}");
    // A change counts when the agent was told, and a faulty file changes nothing.
    let newaliases = |host: &Host, text: &str| {
        fs::write(&aliases, text).expect("written");
        give(host.command("newaliases", &[]), "")
    };
    let faulty = newaliases(&host, "# x\nroot: |/bin/sh\n");
    assert_eq!(faulty.status.code(), Some(78));
    assert!(words_of(&faulty).contains("aliases:2:7: "), "{}", words_of(&faulty));
    host.sink.forget();
    host.takes(&["root"], LETTER);
    assert_eq!(host.one().recipients, ["admin@example.org"]);
    assert!(newaliases(&host, "root: other@example.org\n").status.success());
    host.sink.forget();
    host.takes(&["root"], LETTER);
    assert_eq!(host.one().recipients, ["other@example.org"]);
    assert!(host.agent.stop().success());
    assert!(newaliases(&host, "root: third@example.org\n").status.success(), "who starts reads them");
}
