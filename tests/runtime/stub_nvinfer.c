/* What the TensorRT Python bindings import from its libraries, so that the bindings load where TensorRT is not installed.
   Nothing here works; only the bindings' own classes and names are looked at. */
void* createInferBuilder_INTERNAL(void* logger, int version) { return 0; }
void* createNvOnnxParser_INTERNAL(void* network, void* logger, int version) { return 0; }
void* createNvOnnxParserRefitter_INTERNAL(void* refitter, void* logger, int version) { return 0; }
void* getBuilderPluginRegistry(int capability) { return 0; }
#ifndef REAL_REGISTRY /* the dispatch runtime has these */
void* createInferRefitter_INTERNAL(void* engine, void* logger, int version) { return 0; }
void* createInferRuntime_INTERNAL(void* logger, int version) { return 0; }
void* getPluginRegistry(void) { return 0; }
#endif
int getNvOnnxParserVersion(void) { return 0; }
int initLibNvInferPlugins(void* logger, char const* name) { return 1; }
/* Only 8.6 has these parsers. */
void* _ZN11nvuffparser15createUffParserEv(void) { return 0; }
void _ZN11nvuffparser8FieldMapC1EPKcPKvNS_9FieldTypeEi(void) {}
void* _ZN14nvcaffeparser117createCaffeParserEv(void) { return 0; }
void _ZN14nvcaffeparser123shutdownProtobufLibraryEv(void) {}
