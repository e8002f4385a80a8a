//! The faults of a configuration as they are shown to people: `tests/config/*.toml` beside the text
//! that each must give. `UPDATE_GOLDEN=1` rewrites the texts; read the difference before keeping it.

use std::path::Path;

use postroad::config::Config;

#[test]
fn every_fault_is_shown_with_its_line_and_a_remedy() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config");
    let mut count = 0;
    for entry in std::fs::read_dir(&directory).expect("the directory is part of the project") {
        let path = entry.expect("readable").path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let name = path.file_name().and_then(|name| name.to_str()).expect("names are ASCII");
        let text = std::fs::read_to_string(&path).expect("readable");
        let errors = Config::from_str(&text, name, Path::new("/etc/postroad")).expect_err(name);
        let shown = format!("{errors}\n");
        let golden = path.with_extension("txt");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&golden, &shown).expect("writable");
        }
        let want = std::fs::read_to_string(&golden).unwrap_or_default();
        assert_eq!(shown, want, "{name}: run again with UPDATE_GOLDEN=1 and read the difference");
        for fault in errors.faults() {
            assert!(!fault.remedy.is_empty(), "{name}: {} has no remedy", fault.message);
            assert!(errors.position(fault).is_some(), "{name}: {} has no place", fault.message);
        }
        count += 1;
    }
    assert!(count >= 6, "only {count} files found");
}
