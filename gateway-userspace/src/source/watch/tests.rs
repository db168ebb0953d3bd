//! The file source against a real file system.

use std::{fs, os::unix::fs::symlink};

use super::*;
use crate::drain::{Tasks, Trigger, channel};

const ONE: &str = "listeners: [{name: a, address: 127.0.0.1, port: 8001, protocol: HTTP}]\n";
const TWO: &str = "listeners: [{name: b, address: 127.0.0.1, port: 8001, protocol: HTTP}]\n";
const BAD: &str = "listeners: [{name: b, address: 127.0.0.1, port: 99999, protocol: HTTP}]\n";

/// Longer than settling takes, far shorter than the poll: an update within it came from an event.
const SOON: Duration = Duration::from_secs(5);

struct Followed {
    dir: tempfile::TempDir,
    updates: mpsc::Receiver<Update>,
    reload: Reload,
    trigger: Trigger,
    tasks: Tasks,
}

impl Followed {
    fn new(prepare: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        prepare(dir.path());
        let (_, source) = FileSource::open(&dir.path().join("sluice.yaml")).unwrap();
        let reload = source.handle();
        let (trigger, drain) = channel();
        let (sender, updates) = mpsc::channel(1);
        let tasks = Tasks::default();
        tasks.spawn("file source", source.run(sender, drain));
        Self { dir, updates, reload, trigger, tasks }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Replaces a file at once, so that no half of it can be read.
    fn put(&self, name: &str, text: &str) {
        fs::write(self.path("put"), text).unwrap();
        fs::rename(self.path("put"), self.path(name)).unwrap();
    }

    async fn update(&mut self) -> Update {
        tokio::time::timeout(SOON, self.updates.recv()).await.expect("an update in time").unwrap()
    }

    async fn name(&mut self) -> String {
        let snapshot = self.update().await.snapshot.unwrap();
        snapshot.listeners[0].name.as_str().to_owned()
    }

    async fn nothing_more(&mut self) {
        assert!(tokio::time::timeout(QUIET * 6, self.updates.recv()).await.is_err(), "no further update");
    }

    async fn end(self) {
        self.trigger.start();
        assert_eq!(self.tasks.ended(SOON).await, 0);
    }
}

#[tokio::test]
async fn a_config_map_that_is_swapped_gives_one_update() {
    let version = |dir: &Path, name: &str, text: &str| {
        fs::create_dir(dir.join(name)).unwrap();
        fs::write(dir.join(name).join("sluice.yaml"), text).unwrap();
    };
    let mut followed = Followed::new(|dir| {
        version(dir, "..1", ONE);
        symlink("..1", dir.join("..data")).unwrap();
        symlink("..data/sluice.yaml", dir.join("sluice.yaml")).unwrap();
    });
    for (n, text, name) in [(2, TWO, "b"), (3, ONE, "a")] {
        // As the kubelet does it: a new folder, a new link beside the old, a rename over it, the old folder removed.
        version(followed.dir.path(), &format!("..{n}"), text);
        symlink(format!("..{n}"), followed.path("..tmp")).unwrap();
        fs::rename(followed.path("..tmp"), followed.path("..data")).unwrap();
        fs::remove_dir_all(followed.path(&format!("..{}", n - 1))).unwrap();
        assert_eq!(followed.name().await, name);
        followed.nothing_more().await;
    }
    followed.end().await;
}

#[tokio::test]
async fn a_file_that_vanishes_is_a_fault_and_comes_back() {
    let mut followed = Followed::new(|dir| fs::write(dir.join("sluice.yaml"), ONE).unwrap());
    fs::remove_file(followed.path("sluice.yaml")).unwrap();
    let faults = followed.update().await.snapshot.unwrap_err();
    assert!(faults.to_string().contains("cannot be read"), "{faults}");
    followed.put("sluice.yaml", TWO);
    assert_eq!(followed.name().await, "b");
    followed.end().await;
}

#[tokio::test]
async fn the_same_content_is_no_update_unless_asked_for() {
    let mut followed = Followed::new(|dir| fs::write(dir.join("sluice.yaml"), ONE).unwrap());
    followed.put("sluice.yaml", ONE);
    followed.nothing_more().await;
    // What was refused for a reason outside the file may be taken now.
    followed.reload.reload();
    assert_eq!(followed.name().await, "a");
    followed.nothing_more().await;
    followed.put("sluice.yaml", BAD);
    assert_eq!(followed.update().await.snapshot.unwrap_err().count(), 1);
    followed.put("sluice.yaml", ONE);
    assert_eq!(followed.name().await, "a", "the way back from a fault is an update, too");
    followed.end().await;
}

#[tokio::test]
async fn a_change_of_the_agent_part_is_told() {
    let mut followed = Followed::new(|dir| fs::write(dir.join("sluice.yaml"), ONE).unwrap());
    followed.put("sluice.yaml", &format!("agent: {{drainDeadline: 1s}}\n{ONE}"));
    assert!(followed.update().await.agent_changed);
    followed.put("sluice.yaml", &format!("agent: {{drainDeadline: 30s}}\n{ONE}"));
    let update = followed.update().await;
    assert!(!update.agent_changed, "a default that is written out is no change");
    assert_eq!(update.snapshot.unwrap().generation, FIRST_GENERATION + 2);
    followed.end().await;
}

#[tokio::test]
async fn a_new_certificate_in_another_folder_is_an_update() {
    let key = rcgen::KeyPair::generate().unwrap();
    let chain = |name: &str| {
        rcgen::CertificateParams::new([name.to_owned()]).unwrap().self_signed(&key).unwrap().pem()
    };
    let (first, second) = (chain("a.test"), chain("b.test"));
    let mut followed = Followed::new(|dir| {
        fs::create_dir(dir.join("tls")).unwrap();
        fs::write(dir.join("tls/web.pem"), &first).unwrap();
        fs::write(dir.join("tls/web.key"), key.serialize_pem()).unwrap();
        let tls = "tls: {certificates: [{certificateFile: tls/web.pem, keyFile: tls/web.key}]}";
        let text = format!("listeners: [{{name: a, address: 127.0.0.1, port: 1, protocol: HTTPS, {tls}}}]");
        fs::write(dir.join("sluice.yaml"), text).unwrap();
    });
    followed.put("tls/web.pem", &second);
    let snapshot = followed.update().await.snapshot.unwrap();
    assert_eq!(snapshot.listeners[0].certificates[0].chain_pem, second.as_bytes());
    followed.put("tls/web.key", "");
    let faults = followed.update().await.snapshot.unwrap_err().to_string();
    assert!(faults.contains("listeners[0].tls.certificates[0].keyFile"), "{faults}");
    followed.end().await;
}

#[tokio::test]
async fn a_new_bundle_for_endpoints_is_an_update_for_all_services_that_trust_it() {
    let made = || rcgen::generate_simple_self_signed(["ca.test".to_owned()]).unwrap().cert.pem();
    let (first, second) = (made(), made());
    let mut followed = Followed::new(|dir| {
        fs::write(dir.join("ca.pem"), &first).unwrap();
        let service = |name: &str| {
            let tls = format!("{{serverName: {name}.test, trustFile: ca.pem}}");
            format!("{{name: {name}, endpoints: [], tls: {tls}}}")
        };
        let text = format!("listeners: []\nservices: [{}, {}]\n", service("a"), service("b"));
        fs::write(dir.join("sluice.yaml"), text).unwrap();
    });
    followed.put("ca.pem", &second);
    let snapshot = followed.update().await.snapshot.unwrap();
    let [a, b] = [0, 1].map(|at| snapshot.services[at].tls.clone().unwrap().trust.pem);
    assert_eq!(&*a, second.as_bytes());
    assert!(std::sync::Arc::ptr_eq(&a, &b), "one copy for both");
    followed.put("ca.pem", "");
    let faults = followed.update().await.snapshot.unwrap_err().to_string();
    assert!(faults.contains("services[1].tls.trustFile"), "{faults}");
    followed.end().await;
}

#[tokio::test]
async fn a_reload_that_is_asked_for_looks_at_once() {
    let mut followed = Followed::new(|dir| fs::write(dir.join("sluice.yaml"), ONE).unwrap());
    followed.put("sluice.yaml", TWO);
    followed.reload.reload();
    followed.reload.reload();
    assert_eq!(followed.name().await, "b");
    followed.nothing_more().await;
    followed.end().await;
}
