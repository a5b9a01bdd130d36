#pragma once

// VIDSPARSE_API marks what the shared library exports; everything else is hidden.
// VIDSPARSE_STATIC is set for users of the static library, VIDSPARSE_BUILDING inside the build.
#if defined(VIDSPARSE_STATIC)
#define VIDSPARSE_API
#elif defined(_WIN32)
#if defined(VIDSPARSE_BUILDING)
#define VIDSPARSE_API __declspec(dllexport)
#else
#define VIDSPARSE_API __declspec(dllimport)
#endif
#else
#define VIDSPARSE_API __attribute__((visibility("default")))
#endif
