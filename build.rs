//! Tells the linker what a Node-API addon needs (undefined symbols that Node provides).

fn main() {
    napi_build::setup();
}
