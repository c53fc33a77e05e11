// The Python module fastib._C_cuda. Loading it registers the CUDA kernels with PyTorch's dispatcher, through static
// initialisers of the other files.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "../common/stable.h"

namespace {

PyObject* poison_results(PyObject*, PyObject* argument) {
  const int on = PyObject_IsTrue(argument);
  if (on < 0) return nullptr;
  fastib::poison_results = on != 0;
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"poison_results", poison_results, METH_O, "For tests: whether results are NaN until a kernel writes them."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C_cuda", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C_cuda() { return PyModule_Create(&module); }
