//! How each neighbour is set up: it relays everything to the agent, but mail for back.test to a
//! sink; TLS as it can; nothing rewritten that needs not be.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use crate::daemon::{Daemon, Place, allow, program};
use crate::support::tls::IDENTITY;

/// The addresses around a neighbour.
pub struct Neighbours {
    /// Its own.
    pub address: SocketAddr,
    /// Where it relays to.
    pub agent: SocketAddr,
    /// Where mail for back.test goes.
    pub back: SocketAddr,
    /// Whether it relays to the agent under TLS, or never.
    pub tls: bool,
}

fn certificate(place: &Place) {
    IDENTITY.write_to(place.path("").as_path());
    ["cert.pem", "key.pem"].iter().for_each(|name| allow(&place.path(name), 0o644));
}

/// Starts Debian's Postfix with configuration, queue and data of its own.
pub fn postfix(place: &Place, at: &Neighbours) -> Daemon {
    certificate(place);
    let config = place.path("etc");
    let (agent, back) = (at.agent, at.back);
    let lines = [
        ("compatibility_level", "3.6".to_owned()),
        ("queue_directory", place.path("spool").display().to_string()),
        ("data_directory", place.directory_of("data", "postfix").display().to_string()),
        ("maillog_file", "/dev/stdout".to_owned()),
        ("myhostname", "postfix.test".to_owned()),
        ("mydestination", String::new()),
        // The listener names its address itself.
        ("inet_interfaces", "127.0.0.1".to_owned()),
        ("inet_protocols", "ipv4".to_owned()),
        ("mynetworks", "127.0.0.0/8".to_owned()),
        ("relayhost", format!("[{}]:{}", agent.ip(), agent.port())),
        ("transport_maps", format!("inline:{{ {{ back.test = smtp:[{}]:{} }} }}", back.ip(), back.port())),
        ("smtpd_recipient_restrictions", "permit_mynetworks,reject".to_owned()),
        ("alias_maps", String::new()),
        ("alias_database", String::new()),
        ("local_recipient_maps", String::new()),
        ("local_header_rewrite_clients", String::new()),
        ("smtp_bind_address", at.address.ip().to_string()),
        ("smtpd_peername_lookup", "no".to_owned()),
        ("smtp_dns_support_level", "disabled".to_owned()),
        ("smtp_tls_security_level", if at.tls { "may" } else { "none" }.to_owned()),
        ("smtpd_tls_security_level", "may".to_owned()),
        ("smtpd_tls_chain_files", format!("{0}/key.pem {0}/cert.pem", place.path("").display())),
        ("minimal_backoff_time", "2s".to_owned()),
        ("queue_run_delay", "2s".to_owned()),
        ("in_flow_delay", "0".to_owned()),
    ];
    let text: String = lines.iter().map(|(name, value)| format!("{name} = {value}\n")).collect();
    place.write("etc/main.cf", &text);
    let master = std::fs::read_to_string("/usr/share/postfix/master.cf.dist").expect("Debian's Postfix has it");
    // Services without the chroot that needs copies of /etc, and the listener at our address.
    let master: String = master.lines().map(|line| service(line, at.address)).collect();
    place.write("etc/master.cf", &master);
    place.directory_of("spool", "root");
    // Makes the directories of the queue.
    let checked = Command::new(program("postfix")).arg("-c").arg(&config).arg("check").status();
    assert!(checked.is_ok_and(|status| status.success()), "postfix check fails: see the system's log");
    // `postfix start-fg` would leave a shell between us and the process that a signal is meant for.
    let mut master = Command::new("/usr/lib/postfix/sbin/master");
    Daemon::start(master.arg("-c").arg(&config).arg("-s"), place.path("postfix.log"))
}

/// Adapts a line of master.cf.
fn service(line: &str, address: SocketAddr) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    if line.starts_with(['#', ' ', '\t']) || words.len() < 8 {
        return format!("{line}\n");
    }
    let name = if words[0] == "smtp" && words[1] == "inet" { address.to_string() } else { words[0].to_owned() };
    let rest = [&[words[1], words[2], words[3], "n"][..], &words[5..]].concat();
    format!("{name} {}\n", rest.join(" "))
}

/// Starts Debian's Exim with a configuration and a spool of its own.
pub fn exim(place: &Place, at: &Neighbours) -> Daemon {
    certificate(place);
    let exim = program("exim4");
    let user = "Debian-exim";
    place.directory_of("spool", user);
    place.directory_of("log", user);
    let config = place.write("exim.conf", &exim_config(place, at, &exim));
    let mut command = Command::new(exim);
    command.arg("-C").arg(&config).args(["-bdf", "-q5s"]);
    Daemon::start(&mut command, place.path("exim.log"))
}

fn exim_config(place: &Place, at: &Neighbours, exim: &Path) -> String {
    let (agent, back, root) = (at.agent, at.back, place.path(""));
    let root = root.display();
    format!(
        "exim_path = {exim}
spool_directory = {root}/spool
log_file_path = {root}/log/%slog
pid_file_path = {root}/spool/pid
primary_hostname = exim.test
local_interfaces = {ip}
daemon_smtp_ports = {port}
disable_ipv6 = true
host_lookup =
rfc1413_query_timeout = 0s
deliver_drop_privilege = true
tls_advertise_hosts = *
tls_certificate = {root}/cert.pem
tls_privatekey = {root}/key.pem
accept_8bitmime = true
chunking_advertise_hosts = *
allow_mx_to_ip = true
smtp_accept_max_per_connection = 10000
smtp_accept_queue_per_connection = 0
received_headers_max = 60
acl_smtp_rcpt = accept
acl_smtp_data = accept
begin acl
accept:
  accept
begin routers
back:
  driver = manualroute
  domains = back.test
  transport = to_back
  route_list = * {back_ip} byname
  self = send
forth:
  driver = manualroute
  transport = to_agent
  route_list = * {agent_ip} byname
  self = send
begin transports
to_back:
  driver = smtp
  port = {back_port}
  allow_localhost = true
to_agent:
  driver = smtp
  port = {agent_port}
  allow_localhost = true
  {tls} = *
  tls_verify_certificates =
  tls_try_verify_hosts =
begin retry
* * F,2h,2s
",
        exim = exim.display(),
        ip = at.address.ip(),
        port = at.address.port(),
        back_ip = back.ip(),
        back_port = back.port(),
        agent_ip = agent.ip(),
        agent_port = agent.port(),
        tls = if at.tls { "hosts_require_tls" } else { "hosts_avoid_tls" },
    )
}

/// What is seen by OpenSMTPD alone: its directories, which cannot be set, and no DNS.
const OPENSMTPD_MOUNTS: &str = "place=$1; shift
for directory in lib run spool; do mount --bind \"$place/$directory\" /var/$directory; done
mount --bind \"$place/resolv.conf\" /etc/resolv.conf
exec \"$@\"";

/// Starts Debian's OpenSMTPD with a configuration, a queue and mounts of its own. It offers no TLS: with the
/// OpenSSL of Debian 12 its process for keys finds none.
pub fn opensmtpd(place: &Place, at: &Neighbours) -> Daemon {
    for (directory, mode) in [("lib/opensmtpd/empty", 0o755), ("run", 0o755), ("spool/smtpd", 0o711)] {
        std::fs::create_dir_all(place.path(directory)).expect("writable");
        allow(&place.path(directory), mode);
    }
    place.write("resolv.conf", "lookup file\n");
    let (peer, agent, back) = (at.address, at.agent, at.back);
    let (scheme, verify) = if at.tls { ("smtp+tls", "tls no-verify") } else { ("smtp+notls", "") };
    let config = format!(
        "smtp max-message-size 100M
mta limit conn-delay-route 0
listen on {ip} port {port} hostname opensmtpd.test
action \"back\" relay host smtp+notls://{back} helo opensmtpd.test
action \"forth\" relay host {scheme}://{agent} {verify} helo opensmtpd.test
match from any for domain \"back.test\" action \"back\"
match from any for any action \"forth\"
",
        ip = peer.ip(),
        port = peer.port(),
    );
    let config = place.write("smtpd.conf", &config);
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-euc", OPENSMTPD_MOUNTS, "sh"]);
    command.arg(place.path("")).arg(program("smtpd")).arg("-d").arg("-f").arg(config);
    Daemon::start(&mut command, place.path("opensmtpd.log"))
}

/// Starts Dovecot with an LMTP socket at `lmtp` and Maildirs below `mail`; it knows alice.
pub fn dovecot(place: &Place) -> Daemon {
    place.write("users", "alice:::::::\n");
    place.directory_of("mail", "nobody");
    std::fs::create_dir_all(place.path("run")).expect("writable");
    let root = place.path("");
    let root = root.to_str().expect("temporary directories have plain names").trim_end_matches('/');
    let config = place.write(
        "dovecot.conf",
        &format!(
            "base_dir = {root}/run
state_dir = {root}/run
log_path = /dev/stderr
protocols = lmtp
ssl = no
hostname = dovecot.test
mail_location = maildir:{root}/mail/%n
first_valid_uid = 1
lmtp_save_to_detail_mailbox = no
auth_username_format = %n
passdb {{
  driver = static
  args = nopassword
}}
userdb {{
  driver = passwd-file
  args = username_format=%n {root}/users
  default_fields = uid=nobody gid=nogroup home={root}/mail/%n
}}
service lmtp {{
  unix_listener {root}/lmtp {{
    mode = 0666
  }}
}}
"
        ),
    );
    Daemon::start(Command::new(program("dovecot")).arg("-c").arg(config).arg("-F"), place.path("dovecot.log"))
}
