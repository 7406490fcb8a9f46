#include "commands.h"
Command serve_command() { return {"serve", "", "", 0, 0, {}, ""}; }
int run_serve(const Arguments&) { return 1; }
