fn main() {
    let a: Vec<String> = std::env::args().collect();
    let lang = a[1].parse().unwrap();
    let folder = std::path::PathBuf::from(&a[2]);
    pointsman_build::vendor(&folder, lang).unwrap();
    let tools = pointsman_build::Tools::from_environment().with_folder("/tmp/w/hA/venv/bin").with_folder("/tmp/w/hA/npm/node_modules/.bin").with_target_dir("/tmp/w/hA/target/guests");
    match pointsman_build::build(&folder, &tools, &mut |l| println!("{l}")) { Ok(b) => println!("{b:?}"), Err(e) => { println!("{e}"); std::process::exit(1) } }
}
